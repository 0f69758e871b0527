"""`penchant recipe` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from penchant.cli.main import run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rows = [f"u{u},i{(u + t) % 12},{100 * t + u}" for u in range(20) for t in range(9)]
    (tmp_path / "interactions.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    (tmp_path / "titles.csv").write_text("\n".join(["item,title", *(f"i{n},Film {n}" for n in range(12))]) + "\n")
    values = {name: str(tmp_path / f"{name}.csv") for name in ("interactions", "titles")}
    values |= {"output": str(tmp_path / "out"), "questions": {"candidates": 3, "min_count": 1}}
    values |= {"methods": [{"name": "s_dpo", "objective": {"name": "s_dpo"}, "negatives": 2}]}
    file = tmp_path / "recommend.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_one_stage_alone(config, capsys):
    assert run(["recipe", "recommend", str(config), "--stage", "questions", "--json"]) == 0
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert results["questions"]["baselines"]["chance"]["hit_ratio@1"]["value"] == pytest.approx(1 / 3)
    assert "1 of 5: questions from interactions" in printed.err
    assert run(["recipe", "recommend", str(config), "--stage", "questions"]) == 0
    assert "already done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "sft"], "stage 'questions' comes before 'sft' and is not done"),
        (["--stage", "stf"], "there is no stage 'stf'"),
        (["questions.min_history=100"], "no questions for training and validation and test"),
        (["questions.candidates=20"], "to draw 19 others from"),
        (["methods=[{name: s_dpo, negatives: 3}]"], "takes 3 titles beside the target"),
        (["questions.template=Who?"], "the template holds {history} 0 times; expected once"),
        (["columns={user: who}"], "no user; looked for the columns who"),
        (["colums={user: who}"], "colums: there is no such key (did you mean columns?)"),
    ],
)
def test_mistakes_exit_with_2_and_one_message(config, capsys, arguments, message):
    assert run(["recipe", "recommend", str(config), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_an_unknown_recipe(config, capsys):
    assert run(["recipe", "recomend", str(config)]) == 2
    assert "recommend" in capsys.readouterr().err
