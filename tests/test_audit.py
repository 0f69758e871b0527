"""The audit of packages never passes a package that was not looked up."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "audit.py"
SOUND = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (1)"}
BROKEN = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": [], "description": ""}]}


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ([SOUND], (0, "audit: 1 of 1 packages looked up, 0 with known vulnerabilities")),
        ([SOUND, SKIPPED], (0, "audit: 1 of 2 packages looked up, 0 with known vulnerabilities")),
        ([BROKEN, SKIPPED], (1, "audit: 1 of 2 packages looked up, 1 with known vulnerabilities: c 2")),
        ([SKIPPED] * 3, (0, "audit: NOT DONE: the database that is reached from here knows none of 3 packages")),
        (None, (0, "audit: NOT DONE: the database of vulnerabilities cannot be reached from here (ConnectError)")),
    ],
    ids=["sound", "one not looked up", "vulnerable", "none looked up", "no answer"],
)
def test_verdict(packages, expected):
    output = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
    assert runpy.run_path(str(SCRIPT))["verdict"](output, "INFO x\nConnectError\n") == expected
