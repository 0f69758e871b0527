"""Fixtures of the command line's tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from penchant.cli.main import run


@pytest.fixture
def run_json(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs a command line with --json; its document, and what it printed on standard error under ``err``."""

    def run_command(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        code = run([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return {**json.loads(out), "err": err}

    return run_command
