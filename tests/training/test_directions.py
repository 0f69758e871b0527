"""Every metric that can decide which checkpoint is best goes the right way."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from penchant.config.run import load_config
from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError
from penchant.objectives import OBJECTIVES, FittedObjective
from penchant.training.batches import group_tensors
from penchant.training.log import direction
from penchant.training.run import train

WAYS = {
    "lower": "loss nll_loss dpo/loss sft/loss score/error rewards/rejected logps/rejected head/rejected ddo_rm/kl",
    "higher": "rewards/accuracies rewards/margins rewards/chosen logps/chosen head/accuracies head/margins head/chosen "
    "reward ddo_rm/expected_reward ddo_rm/top1",
    None: "kl rewards/ties head/ties ddo_rm/entropy ddo_rm/target_entropy ddo_rm/target_reward advantage/squared "
    "multi_reference/weight_0 multi_reference/weight_1 multi_reference/clipped",
}
EXPECTED = {name: way for way, names in WAYS.items() for name in names.split()}


def metrics_of(name: str) -> set[str]:
    """Of an evaluation of one pair."""
    method = OBJECTIVES[name]()
    pair = group_tensors([PreferenceGroup("", ("a", "b"), preferred=0)], [[1, 1]])
    pair = replace(pair, rewards=torch.zeros(1, 2))
    reference = torch.zeros(2 if method.needs.many_references else method.needs.references, 1, 2)
    state = method.initial_state(seed=0)
    if isinstance(method, FittedObjective):
        state = method.fit(reference, pair, state)
    return set(method.evaluate(torch.zeros(1, 2), reference, pair, state).metrics)


def test_each_metric_of_each_method_has_its_way():
    """A new metric of a method is to be put in the table here, and thought about."""
    assert {"loss"}.union(*map(metrics_of, OBJECTIVES)) == EXPECTED.keys()
    assert {name: direction(name) for name in EXPECTED} == EXPECTED


def test_a_metric_of_the_users_own():
    assert direction("mine/recall") == "higher"
    assert direction("mine/error") == "lower"


def test_the_documented_table_is_the_one_that_is_used():
    page = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    rows = dict(re.findall(r"^\| (better lower|neither, and refused) \| (.*) \|$", page, re.MULTILINE))
    for row, way in (("better lower", "lower"), ("neither, and refused", None)):
        documented_names = re.findall("`(.+?)`", rows[row])
        names = {name for name, direction in EXPECTED.items() if direction == way}
        patterns = [name.replace("NAME", "*").replace("*", ".+") for name in documented_names]
        assert all(any(re.fullmatch(pattern, name) for pattern in patterns) for name in names)
        assert all(any(re.fullmatch(pattern, name) for name in names) for pattern in patterns)


@pytest.mark.slow_but("loss-min")
@pytest.mark.parametrize(("metric", "best"), [("rewards/rejected", min), ("rewards/margins", max), ("loss", min)])
def test_the_best_checkpoint_is_the_best(write_config, metric, best):
    """Three evaluations of a run that gets worse and better; `best/` is the model of the best of them."""
    file = write_config(
        training={"max_steps": 6, "learning_rate": 0.1, "schedule": "constant"},
        evaluation={"every": 1, "metric": metric},
        checkpoints={"every": 1, "keep": 20},
    )
    folder = train(load_config(file))
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = {line["step"]: line[f"eval_{metric}"] for line in log if "eval_loss" in line and line["step"]}
    assert len(values) == 6
    step = best(values, key=values.__getitem__)
    short_folder = train(load_config(file, [f"output={folder}-short", f"training.max_steps={step}"]))
    weights = [(path / "model.safetensors").read_bytes() for path in (folder / "best", short_folder)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("metric", ["rewards/ties", "kl"])
def test_a_metric_without_a_way_is_refused(write_config, tmp_path, metric):
    name = "kto" if metric == "kl" else "dpo"
    file = write_config(objective={"name": name}, evaluation={"every": 1, "metric": metric})
    with pytest.raises(ConfigError, match=f"'{metric}', which is better neither higher nor lower") as error:
        train(load_config(file))
    assert metric not in error.value.fix
    assert "rewards/rejected" in error.value.fix
    assert not (tmp_path / "run").exists()


def test_a_metric_that_counts_nothing_is_refused_before_the_first_step(write_config, tmp_path):
    """Responses of a held-out part without preferences: nothing is chosen over anything."""
    file = tmp_path / "held_out.jsonl"
    rows = [{"prompt": "the old cat", "completion": " sees", "label": True}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write_config(
        objective={"name": "kto"}, data={"held_out": str(file)}, evaluation={"every": 1, "metric": "rewards/rejected"}
    )
    with pytest.raises(ConfigError, match="'rewards/rejected', and no held-out group has anything") as error:
        train(load_config(config))
    assert "rewards/chosen" in error.value.fix
    assert "rewards/rejected" not in error.value.fix
    assert not (tmp_path / "run").exists()
