"""The sheet for people, filled in and read back."""

from __future__ import annotations

import csv
import json

import pytest

from penchant.cli import run
from penchant.errors import DataError
from penchant.evaluation.rating_sheet import read_sheet, write_sheet

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
    found = rows(folder)
    with (folder / "sheet.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, found[0].keys())
        writer.writeheader()
        writer.writerows([{**row, "better": verdict} for row, verdict in zip(found, verdicts, strict=True)])


def test_it_does_not_say_whose_and_mixes_them(folder):
    found = rows(folder)
    assert [row["prompt"] for row in found] == PROMPTS
    first = [row["answer_a"].split(",")[0].split(" ")[0] for row in found]
    assert 8 < first.count("base") < 32
    for n, row in enumerate(found):
        assert {row["answer_a"], row["answer_b"]} == {ANSWERS["base"][n], ANSWERS["dpo"][n]}
    assert "better" in found[0]
    assert not any(row["better"] for row in found)


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
    found = json.loads(capsys.readouterr().out)
    assert found["base"]["n"] == found["dpo"]["n"] == 20
    assert found["base"]["value"] + found["dpo"]["value"] == pytest.approx(1.0)
    assert found["base"]["low"] < found["base"]["value"] < found["base"]["high"]
    assert run(["data", "ratings", str(folder / "none")]) == 2
    assert "key.csv" in capsys.readouterr().err
