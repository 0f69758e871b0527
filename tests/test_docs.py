"""Generated pages are what their generator writes; links in the README lead somewhere."""

from __future__ import annotations

import ast
import re
import runpy
from itertools import pairwise
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("file", "function"), [("configuration.md", "page"), ("methods.md", "methods_page")])
def test_generated_page_is_up_to_date(file, function):
    page = runpy.run_path(str(REPOSITORY / "docs" / "generate.py"))[function]
    assert (REPOSITORY / "docs" / file).read_text() == page(), "run: python docs/generate.py"


def test_links_point_to_existing_files():
    for file in [REPOSITORY / "README.md", *REPOSITORY.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            if not link.startswith("http"):
                assert (file.parent / link).exists(), f"{file.name}: {link}"


def imported_modules(file: Path) -> set[str]:
    """Modules that a file imports, those inside of functions too."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def test_files_from_a_verb_to_the_loss_import_each_other_in_order():
    """Each one imports the next; the last is a method, which is called through the objectives' registry."""
    sentence = re.search(
        r"Five files lead from a verb to the loss:(.*?)\.\n", (REPOSITORY / "README.md").read_text(), re.S
    )
    files = re.findall(r"\]\(([^)]+)\)", sentence[1])
    assert len(files) == 5
    for caller, callee in pairwise(files):
        module = callee.removeprefix("src/").removesuffix(".py").replace("/", ".")
        package = module.rpartition(".")[0]
        assert imported_modules(REPOSITORY / caller) & {module, package if callee == files[-1] else module}
