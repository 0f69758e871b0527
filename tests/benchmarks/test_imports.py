"""The benchmarks' imports of Penchant resolve, also those in scripts that they start as strings."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
IMPORT = re.compile(r"^\s*from (penchant(?:\.\w+)*) import \(?([\w, ]+)", re.MULTILINE)


@pytest.mark.parametrize("file", sorted(BENCHMARKS.rglob("*.py")), ids=lambda file: file.name)
def test_imported_names_exist(file):
    for module_name, names in IMPORT.findall(file.read_text(encoding="utf-8")):
        module = import_module(module_name)
        for name in re.findall(r"(\w+)(?: as \w+)?", names):
            if not hasattr(module, name):
                import_module(f"{module_name}.{name}")
