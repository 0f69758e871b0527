"""Generated pages are what their generator writes; links in the README lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def test_configuration_page_is_up_to_date():
    page = runpy.run_path(str(REPOSITORY / "docs" / "generate.py"))["page"]
    assert (REPOSITORY / "docs" / "configuration.md").read_text() == page(), "run: python docs/generate.py"


def test_links_lead_somewhere():
    for file in [REPOSITORY / "README.md", *REPOSITORY.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            if not link.startswith("http"):
                assert (file.parent / link).exists(), f"{file.name}: {link}"
