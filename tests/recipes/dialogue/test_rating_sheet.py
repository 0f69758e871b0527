"""The sheet for people, filled in and read back."""

from __future__ import annotations

import csv
import json

import pytest

from penchant.cli.main import run
from penchant.errors import DataError
from penchant.recipes.dialogue.rating_sheet import _without_guard, read_sheet, write_sheet

PROMPTS = [f"Why, {n}?" for n in range(40)]
ANSWERS = {"base": [f"base, {n}" for n in range(40)], "dpo": [f'dpo "{n}"\nindeed' for n in range(40)]}


@pytest.fixture
def folder(tmp_path):
    write_sheet(tmp_path, PROMPTS, ANSWERS)
    return tmp_path


def rows(folder):
    with (folder / "sheet.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def fill(folder, verdicts):
    sheet_rows = rows(folder)
    with (folder / "sheet.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, sheet_rows[0].keys())
        writer.writeheader()
        writer.writerows([{**row, "better": verdict} for row, verdict in zip(sheet_rows, verdicts, strict=True)])


def test_it_does_not_say_whose_and_mixes_them(folder):
    sheet_rows = rows(folder)
    assert [row["prompt"] for row in sheet_rows] == PROMPTS
    first_words = [row["answer_a"].split(",")[0].split(" ")[0] for row in sheet_rows]
    assert 8 < first_words.count("base") < 32
    for n, row in enumerate(sheet_rows):
        assert {row["answer_a"], row["answer_b"]} == {ANSWERS["base"][n], ANSWERS["dpo"][n]}
    assert "better" in sheet_rows[0]
    assert not any(row["better"] for row in sheet_rows)


def test_read_back(folder):
    verdicts = ["A " if row["answer_a"].startswith("dpo") else "b" for row in rows(folder)]
    fill(folder, [*verdicts[:10], "tie", *[""] * 29])
    assert read_sheet(folder) == {"base": [0.0] * 10 + [0.5], "dpo": [1.0] * 10 + [0.5]}


def test_mistakes(folder):
    with pytest.raises(DataError, match="no row has a verdict"):
        read_sheet(folder)
    fill(folder, ["c", *[""] * 39])
    with pytest.raises(DataError, match="'c' in the column better"):
        read_sheet(folder)
    with pytest.raises(DataError, match="1 models' answers; a sheet compares two"):
        write_sheet(folder, PROMPTS, {"base": ANSWERS["base"]})
    text = (folder / "sheet.csv").read_text().replace("\n1,", "\n77,", 1)
    (folder / "sheet.csv").write_text(text.replace(",c\n", ",a\n", 1))
    with pytest.raises(DataError, match=r"number 77: this number is not in key.csv"):
        read_sheet(folder)


def test_the_verb_reads_it_back(folder, capsys):
    assert run(["data", "ratings", str(folder)]) == 2
    assert "no row has a verdict" in capsys.readouterr().err
    fill(folder, ["a"] * 10 + ["tie"] * 10 + [""] * 20)
    assert run(["data", "ratings", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["base"]["n"] == document["dpo"]["n"] == 20
    assert document["base"]["value"] + document["dpo"]["value"] == pytest.approx(1.0)
    assert document["base"]["low"] < document["base"]["value"] < document["base"]["high"]
    assert run(["data", "ratings", str(folder / "none")]) == 2
    assert "key.csv" in capsys.readouterr().err


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-x", "'quoted'", "plain", "", "\n=1", "é"]


def test_no_cell_is_a_formula_and_all_are_read_back_equal(tmp_path):
    """A model's answer must not be calculated by the spreadsheet that people open it with."""
    answers = {"-base": FORMULAS, "@dpo": FORMULAS[::-1]}
    write_sheet(tmp_path, FORMULAS, answers)
    content = (tmp_path / "sheet.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    with (tmp_path / "sheet.csv").open(newline="", encoding="utf-8-sig") as stream:
        table = list(csv.DictReader(stream))
    cells = [cell for row in table for cell in row.values()]
    assert [cell for cell in cells if cell[:1] and cell[0] in "=+-@\t\r\n"] == []
    assert [_without_guard(row["prompt"]) for row in table] == FORMULAS
    for row, expected in zip(table, zip(*answers.values(), strict=True), strict=True):
        assert sorted(_without_guard(row[name]) for name in ("answer_a", "answer_b")) == sorted(expected)
    fill(tmp_path, ["a"] * len(FORMULAS))
    assert set(read_sheet(tmp_path)) == {"-base", "@dpo"}
