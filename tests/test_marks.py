"""Marks of slow tests, by which `make test` and `make test-slow` choose."""

from __future__ import annotations


def test_cases_that_are_to_be_quick_exist(missing_quick_cases: list[tuple[str, str]]) -> None:
    assert missing_quick_cases == []
