"""data.label_noise in a run: the training part alone is noisy, and the run says how many labels are reversed."""

from __future__ import annotations

import json

import pytest

from penchant.config.run import load_config
from penchant.errors import ConfigError, DataError
from penchant.models.loading import load_tokenizer
from penchant.training.inputs import tokenize_inputs
from penchant.training.run import train


def labels(groups) -> list[tuple[tuple[int, int], ...]]:
    return [group.group.pairs for group in groups]


def test_only_training_labels_are_reversed_and_they_are_counted(write_config, tiny_model):
    file = write_config(objective={"name": "dpo"}, data={"held_out": 0.25})
    tokenizer = load_tokenizer(str(tiny_model))
    clean, noisy = (
        tokenize_inputs(load_config(file, overrides), tokenizer, 128)
        for overrides in ([], ["data.label_noise=0.25", "training.seed=0"])
    )
    assert labels(noisy.held_out) == labels(clean.held_out)
    differing = sum(a != b for a, b in zip(labels(clean.train), labels(noisy.train), strict=True))
    assert (len(clean.train), differing) == (36, 9)
    assert clean.fingerprint != noisy.fingerprint
    line = "training: 9 of 36 groups have their label reversed (data.label_noise=0.25, training.seed=0)"
    assert line in noisy.notes
    assert not any("reversed" in note for note in clean.notes)


def test_noise_1_trains_on_the_reversed_pairs(write_config, tiny_pairs, tmp_path):
    """The losses of a run on a file with chosen and rejected exchanged, and its count is in the run's record."""
    reversed_file = tmp_path / "reversed.jsonl"
    rows = [json.loads(line) for line in tiny_pairs.read_text().splitlines()]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    reversed_file.write_text("".join(json.dumps(row) + "\n" for row in swapped))
    file = write_config(objective={"name": "dpo"}, data={"held_out": None}, training={"max_steps": 3})
    losses = []
    for name, overrides in (("noisy", ["data.label_noise=1"]), ("reversed", [f"data.train={reversed_file}"])):
        folder = train(load_config(file, [*overrides, f"output={tmp_path / name}"]))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    notes = json.loads((tmp_path / "noisy" / "run.json").read_text())["notes"]
    assert any("48 of 48 groups have their label reversed" in note for note in notes)


def test_noise_where_it_has_no_meaning_is_refused(write_config, tiny_model, tmp_path):
    ranked = tmp_path / "ranked.jsonl"
    ranked.write_text(json.dumps({"prompt": "a", "completions": [" b", " c", " d"], "ranks": [1, 2, 3]}) + "\n")
    file = write_config(objective={"name": "plackett_luce"}, data={"held_out": None})
    config = load_config(file, [f"data.train={ranked}", "data.label_noise=0.5"])
    with pytest.raises(DataError, match=r"ranked\.jsonl: data\.label_noise is 0\.5"):
        tokenize_inputs(config, load_tokenizer(str(tiny_model)), 128)
    with pytest.raises(ConfigError, match=r"label_noise is 0\.5, and candidates is sampled"):
        load_config(
            file, ["data.label_noise=0.5", "candidates=sampled", "reward.function=f.py:g", "objective={name: rloo}"]
        )
    with pytest.raises(ConfigError, match=r"data\.label_noise: input should be less than or equal to 1"):
        load_config(file, ["data.label_noise=20"])
