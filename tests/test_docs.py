"""Generated pages are what their generator writes; links in the README lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("file", "function"), [("configuration.md", "page"), ("methods.md", "methods_page")])
def test_generated_page_is_up_to_date(file, function):
    page = runpy.run_path(str(REPOSITORY / "docs" / "generate.py"))[function]
    assert (REPOSITORY / "docs" / file).read_text() == page(), "run: python docs/generate.py"


def test_links_lead_somewhere():
    for file in [REPOSITORY / "README.md", *REPOSITORY.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            if not link.startswith("http"):
                assert (file.parent / link).exists(), f"{file.name}: {link}"
