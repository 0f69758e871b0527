"""Gathers the pages of the documentation's site in build/pages: python docs/pages.py (`make docs` builds the site)

Folders lie there as in the repository, and README.md is the first page, so that every relative link works on the site
too. Files that a page links to are copied; a link to a folder, or to a file that does not exist, is an error.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from generate import api_page

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = REPOSITORY / "build" / "pages"


def linked_files(file: Path) -> list[Path]:
    """The files of the repository that a page links to."""
    if file.suffix != ".md":
        return []
    links = re.findall(r"\]\(([^)#\s]+)", file.read_text(encoding="utf-8"))
    return [(file.parent / link).resolve() for link in links if not link.startswith("http")]


def main() -> int:
    shutil.rmtree(PAGES, ignore_errors=True)
    files = [*(REPOSITORY / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG"))]
    files += (REPOSITORY / "docs").rglob("*.md")
    copied: set[Path] = set()
    while files:
        file = files.pop()
        if file in copied:
            continue
        copied.add(file)
        for linked in linked_files(file):
            if not linked.is_file():
                print(f"{file.relative_to(REPOSITORY)}: {linked} is no file", file=sys.stderr)
                return 1
            files.append(linked)
        page = PAGES / file.relative_to(REPOSITORY)
        page.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, page)
    (PAGES / "docs" / "api.md").write_text(api_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
