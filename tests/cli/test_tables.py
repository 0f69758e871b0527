"""Tables on 80 columns: a name or a number that is too wide goes on below, and nothing is cut."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console, Group
from rich.table import Table

import penchant
from penchant.cli import output as cli_output
from penchant.cli.main import run
from penchant.cli.output import print_result

NOUNS = ["cat", "dog", "tree", "river", "house", "bird", "big"]
LONG = "a_variant_with_a_name_that_is_longer_than_the_column_it_stands_in_and_has_no_space"


@pytest.fixture
def printed(monkeypatch):
    """What is printed on a console of 80 columns."""
    out = StringIO()
    monkeypatch.setattr(cli_output, "console_for", lambda as_json: Console(file=out, width=80))
    return out


@pytest.mark.parametrize("inside", [False, True])
def test_long_names_and_headers_are_not_cut(printed, inside):
    table = Table("variant", LONG[::-1], "n")
    table.add_column("kept", no_wrap=True)
    table.add_row(LONG, "0.5000 [0.1234, 0.9876]", "48", LONG[:70])
    print_result({}, False, Group("before", table) if inside else table)
    text = printed.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for name in (LONG, LONG[::-1], LONG[:70]):
        columns = [line.split("│") for line in text.replace("┃", "│").splitlines()]
        assert any(name in "".join(line[i].strip() for line in columns if len(line) > i) for i in range(6)), text


def test_the_evaluation_table(printed, tiny_model, tmp_path):
    """Its longest metric names, with one preferred of seven and long sources."""
    rows = [
        {"prompt": f"the {word}", "candidates": [f" {noun}" for noun in NOUNS],
         "preferred": i, "source": f"{LONG}_{i}"}
        for i, word in enumerate(["cat", "dog", "bird"])
    ]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["evaluate", str(tiny_model), "--data", str(file)]) == 0
    text = printed.getvalue()
    assert "…" not in text
    assert "mean_log_prob_hit_ratio@1" in text
    assert max(len(line) for line in text.splitlines() if line[:1] in "┏┡│└") == 80


def test_consoles_are_created_by_few_modules():
    """Tables are printed by `print_result` alone."""
    folder = Path(penchant.__file__).parent
    printing = [
        file.name
        for file in folder.rglob("*.py")
        if "console_for(" in file.read_text() or "Console(" in file.read_text()
    ]
    assert sorted(printing) == ["data.py", "output.py", "progress.py", "review.py"]


def test_a_line_of_text_is_not_broken_up_and_its_brackets_are_text(printed):
    line = "runs/[bold]first/" + "a long folder/" * 12 + "config.yaml: written"
    print_result({}, False, line)
    assert printed.getvalue() == line + "\n"
