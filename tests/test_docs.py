"""Generated pages are what their generator writes, links lead somewhere, and what the pages show runs."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from penchant.cli.main import app

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = REPOSITORY / "src" / "penchant"
PAGES = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), REPOSITORY / "benchmarks" / "README.md"]


@pytest.mark.parametrize(("file", "function"), [("configuration.md", "page"), ("methods.md", "methods_page")])
def test_generated_page_is_up_to_date(file, function):
    page = runpy.run_path(str(REPOSITORY / "docs" / "generate.py"))[function]
    assert (REPOSITORY / "docs" / file).read_text() == page(), "run: python docs/generate.py"


def anchors(file: Path) -> set[str]:
    """Anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_links_point_to_existing_files_and_headings():
    """Not to folders, which the site has no page for."""
    for file in PAGES:
        for link, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", file.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                target = file.parent / link if link else file
                assert target.is_file(), f"{file.name}: {link}"
                assert not anchor or anchor in anchors(target), f"{file.name}: {link}#{anchor}"


def test_modules_that_pages_name_exist():
    """Dotted names under penchant, and files of a room such as engine/tree.py, written as code."""
    rooms = "|".join(path.name for path in SOURCES.iterdir() if path.is_dir())
    for file in PAGES:
        if file.name == "CHANGELOG.md":
            continue  # It names modules of earlier versions.
        text = file.read_text(encoding="utf-8")
        for path in re.findall(rf"`(?:src/)?(?:penchant/)?((?:{rooms})/[a-z0-9_/]+\.py)", text):
            assert (SOURCES / path).is_file(), f"{file.name}: {path}"
        for name in re.findall(rf"penchant\.((?:{rooms})(?:\.\w+)+)", text):
            parts = name.split(".")
            modules = [SOURCES.joinpath(*parts[:n]) for n in range(len(parts), 1, -1)]
            assert any(path.is_dir() or path.with_suffix(".py").is_file() for path in modules), f"{file.name}: {name}"


def shown_commands() -> list[tuple[str, str]]:
    """(page, command line) of every penchant command in a block of code."""
    commands = []
    for file in PAGES:
        text = file.read_text(encoding="utf-8")
        fenced = [
            block for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if language != "python"
        ]
        indented = re.findall(r"^    .*$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
        for line in "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines():
            if match := re.match(r"\s*(?:\$ )?penchant ([a-z].*)", line):
                commands.append((file.name, match[1]))
    return commands


@pytest.mark.parametrize(("page", "command"), shown_commands())
def test_commands_that_pages_show_are_parsed(page, command):
    """Their verbs and flags exist; whether their files do is another matter."""
    words = shlex.split(command, comments=True)
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_stations_of_a_batch_have_the_shapes_that_the_page_says(tiny_model, tiny_pairs, tmp_path, monkeypatch):
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert block.count("assert ") == 5
    monkeypatch.chdir(tmp_path)
    Path("MODEL").symlink_to(tiny_model)
    Path("pairs.jsonl").symlink_to(tiny_pairs)
    exec(block, {})


def test_readme_names_every_make_target_that_ci_calls():
    targets = re.findall(r"^make ([\w-]+)", (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8"), re.M)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert targets == ["audit", "test", "test-slow"]
    assert [target for target in targets if f"make {target}" not in readme] == []
    readme_targets = set(re.findall(r"(?:`|^    )make (?:CONSTRAINTS= )?([\w-]+)", readme, re.M))
    assert readme_targets >= {"demo", "test", "docs"}
    assert [target for target in sorted(readme_targets) if not re.search(rf"^{target}:", makefile, re.M)] == []


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
