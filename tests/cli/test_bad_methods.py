"""A method without what it needs, from the command line: exit code 2, one clear error, nothing written."""

from __future__ import annotations

import json

import pytest

from penchant.cli.main import run

REWARDS = """
def raises(prompt, responses):
    raise ValueError("no such colour")

def short(prompt, responses):
    return [0.5]
"""


@pytest.fixture
def rows(tmp_path):
    """Writes rows of two candidates that also hold these columns."""

    def write(n: int = 8, **columns: object) -> str:
        file = tmp_path / "rows.jsonl"
        lines = [
            json.dumps({"prompt": f"the old cat sees {'dog ' * i}", "candidates": [" a dog", " runs"], **columns})
            for i in range(n)
        ]
        file.write_text("\n".join(lines))
        return str(file)

    return write


CASES = [
    ({"name": "dpoo"}, {}, [], "did you mean dpo?"),
    ({"name": "ddo_rm"}, {"preferred": 0}, [], "ddo_rm learns from scores, and no group has any"),
    ({"name": "ddo_rm"}, {"scores": [1.0, float("nan")]}, [], "NaN"),
    ({"name": "reward_regression"}, {"preferred": 0}, [], "reward_regression learns from scores"),
    ({"name": "s_dpo"}, {"scores": [1, 1]}, [], "no group says which candidate is better"),
    ({"name": "kto"}, {}, [], "kto learns from labels"),
    ({"name": "plackett_luce", "beta": -1}, {"preferred": 0}, [], "beta is -1.0, expected a number above 0"),
    ({"name": "beta_dpo", "keep": 0}, {"preferred": 0}, [], "keep is 0.0, expected a share in (0, 1]"),
    (
        {"name": "multi_reference", "weighting": "fixed", "weights": [0.0, 0.0]},
        {"preferred": 0},
        ["references=[{model}, {model}]"],
        "at least one above 0",
    ),
    (
        {"name": "multi_reference", "weighting": "fixed", "weights": [0.7, 0.7]},
        {"preferred": 0},
        ["references=[{model}, {model}]"],
        "a sum of 1, not 1.4",
    ),
    (
        {"name": "multi_reference", "weighting": "fixed", "weights": [0.5, 0.5]},
        {"preferred": 0},
        ["references=[{model}]"],
        "weights has 2 numbers, the run has 1 references",
    ),
    ({"name": "dpo"}, {"preferred": 0}, ["references=[{model}, {model}]"], "references names 2 models, dpo takes 1"),
    ({"name": "dpo"}, {"preferred": 0}, ["references=[./nowhere]"], "no such folder"),
    (
        {"name": "ddo_rm"},
        {},
        ["reward.function={folder}/rewards.py:raises"],
        "the reward function raised ValueError: no such colour",
    ),
    ({"name": "ddo_rm"}, {}, ["reward.function={folder}/rewards.py:short"], "returned 1 numbers for 2 responses"),
    ({"name": "multi_reference"}, {"preferred": 0}, [], "mixes references, and none is named"),
    ({"name": "dpo", "beta": float("inf")}, {"preferred": 0}, [], "objective.beta is inf, expected a finite number"),
    ({"name": "ddo_rm"}, {"scores": [1.0, 1e39]}, [], "a number of at most 3.40282e+38"),
    (
        {"name": "weighted_sum", "parts": [{"name": "dpo", "weight": float("nan")}]},
        {"preferred": 0},
        [],
        "parts.0.weight is nan, expected a finite number",
    ),
    ({"name": "mine", "file": "{folder}/leaves.py"}, {}, [], "cannot be imported: SystemExit: 3"),
    ({"name": "rloo"}, {}, ["candidates=sampled"], "candidates: sampled needs a reward"),
    ({"name": "mine", "file": "{folder}/broken.py"}, {}, [], "cannot be imported: ImportError: half a wheel"),
    ({"name": "mine", "file": "{folder}/absent.py"}, {}, [], "no such file"),
    ({"name": "weighted_sum", "parts": [{"name": "dpo"}, {"name": "bradley_terry"}]}, {}, [], "a model has one output"),
]


@pytest.mark.parametrize("case", CASES)
def test_mistake_gives_one_error(case, rows, write_config, tmp_path, tiny_model, capsys):
    objective, columns, overrides, message = case
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(3)")
    (tmp_path / "broken.py").write_text("raise ImportError('half a wheel')")
    places = {"model": tiny_model, "folder": tmp_path}
    if "file" in objective:
        objective = {**objective, "file": objective["file"].format(**places)}
    file = write_config(objective=objective)
    arguments = [f"data.train={rows(**columns)}", "data.held_out=null", *(o.format(**places) for o in overrides)]
    assert run(["train", str(file), *arguments]) == 2
    error_output = capsys.readouterr().err
    assert "error: " in error_output
    assert message in error_output
    assert "Traceback" not in error_output
    assert not (tmp_path / "run").exists()
