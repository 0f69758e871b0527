"""Fixtures that read rows from a test, and the path of the module of chat templates."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penchant.data.reading import GroupSet, read_groups
from penchant.errors import DataError

_SPEC = importlib.util.spec_from_file_location("chat_shapes", Path(__file__).with_name("chat_shapes.py"))
chat_shapes = importlib.util.module_from_spec(_SPEC)
sys.modules["chat_shapes"] = chat_shapes
_SPEC.loader.exec_module(chat_shapes)


@pytest.fixture
def read_jsonl(tmp_path: Path) -> Callable[..., GroupSet]:
    """A function that reads rows through a file rows.jsonl, with the options of `read_groups`."""

    def read_written(*rows: Any, **options: Any) -> GroupSet:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return read_groups(file, **options)

    return read_written


@pytest.fixture
def refusal(read_jsonl: Callable[..., GroupSet]) -> Callable[..., DataError]:
    """A function that returns the error of reading rows, which has a fix."""

    def refusal_of(*rows: Any, **options: Any) -> DataError:
        with pytest.raises(DataError) as caught:
            read_jsonl(*rows, **options)
        assert caught.value.fix
        return caught.value

    return refusal_of
