"""The benchmarks' imports of Penchant resolve, also those in scripts that they start as strings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = re.compile(r"^\s*(from|import) penchant\b", re.MULTILINE)


def imports(source: str) -> Iterator[tuple[str, str | None]]:
    """Modules of Penchant and the names imported from them; None for a module itself."""
    for node in ast.walk(ast.parse(dedent(source))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and SCRIPT.search(node.value):
            yield from imports(node.value)


@pytest.mark.parametrize("file", sorted(BENCHMARKS.rglob("*.py")), ids=lambda file: file.name)
def test_imported_names_exist(file):
    for module_name, name in imports(file.read_text(encoding="utf-8")):
        if module_name.partition(".")[0] == "penchant":
            module = import_module(module_name)
            if name is not None and not hasattr(module, name):
                import_module(f"{module_name}.{name}")
