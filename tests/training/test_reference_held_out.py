"""Pairs that reference weights are fitted to: neither trained on nor tested on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from penchant.config.run import load_config
from penchant.data.groups import as_text
from penchant.engine.distributed import World
from penchant.engine.reference_model import FrozenModel
from penchant.errors import ConfigError, DataError
from penchant.models.loading import load_tokenizer
from penchant.training.inputs import read_inputs, tokenize_inputs
from penchant.training.run import train

SINGLE = {"name": "multi_reference", "weighting": "best_single"}
MARGIN = {"name": "multi_reference", "weighting": "validation_margin"}


def prompts(groups) -> set[str]:
    return {as_text(group.prompt) for group in groups}


@pytest.fixture
def memorising_model(write_config, tmp_path) -> str:
    """The tiny model after SFT on the training pairs, until it has them by heart."""
    file = write_config(
        objective={"name": "dpo", "beta": 0.5},
        data={"held_out": None},
        training={"max_steps": 40, "batch_size": 24, "learning_rate": 3e-3},
    )
    return str(train(load_config(file, [f"output={tmp_path / 'memorising'}"])))


@pytest.fixture
def reversed_pairs(tiny_pairs, tmp_path) -> str:
    """Pairs of other prompts, each preferred the other way round than in training."""
    file = tmp_path / "reversed.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for line in tiny_pairs.read_text().splitlines():
            row = json.loads(line)
            responses = {"chosen": row["rejected"], "rejected": row["chosen"]}
            stream.write(json.dumps({**row, "prompt": "then " + row["prompt"], **responses}) + "\n")
    return str(file)


def fitted_weights(file: Path, *overrides: str) -> list[float]:
    """The mean weight of each reference in the first step."""
    folder = train(load_config(file, overrides))
    metrics = next(line for line in map(json.loads, (folder / "metrics.jsonl").open()) if "loss" in line)
    return [metrics["multi_reference/weight_0"], metrics["multi_reference/weight_1"]]


def test_a_reference_that_memorised_the_training_pairs_has_no_advantage(
    write_config, tiny_model, memorising_model, reversed_pairs
):
    """It orders all training pairs right, and those it never saw worse than the other reference does."""
    file = write_config(
        objective=SINGLE,
        references=[str(tiny_model), memorising_model],
        data={"held_out": None, "reference_held_out": reversed_pairs},
        training={"max_steps": 1},
    )
    assert fitted_weights(file) == [1.0, 0.0]


def test_the_weights_are_those_of_the_held_out_pairs(write_config, tiny_model, memorising_model):
    """validation_margin by hand: mean margins per token over the pairs of the slice alone."""
    references = [str(tiny_model), memorising_model]
    file = write_config(
        objective=MARGIN, references=references, data={"reference_held_out": 0.25}, training={"max_steps": 1}
    )
    groups = tokenize_inputs(load_config(file), load_tokenizer(str(tiny_model)), 128).reference_held_out
    world, means = World(0, 1, torch.device("cpu")), []
    for reference in references:
        rows = FrozenModel.load(reference, world, "float32").log_probs(groups, world, 512, "float32")[0]
        margins = [
            row[0] / len(group.responses[0]) - row[1] / len(group.responses[1])
            for row, group in zip(rows, groups, strict=True)
        ]
        means.append(max(0.0, sum(margins) / len(margins)))
    assert fitted_weights(file) == pytest.approx([mean / sum(means) for mean in means], rel=1e-6)


class TestTheParts:
    @pytest.mark.parametrize("held_out", [None, 0.25])
    def test_share_no_prompt(self, write_config, held_out):
        sections = {"data": {"held_out": held_out, "reference_held_out": 0.25}}
        data = read_inputs(load_config(write_config(objective=MARGIN, references=["a"], **sections)))
        parts = [prompts(part) for part in (data.train, data.held_out, data.reference_held_out)]
        assert len(set.union(*parts)) == sum(map(len, parts)) == 24
        assert len(parts[2]) == 6

    def test_the_held_out_part_stays_what_it_was(self, write_config):
        file = write_config(data={"held_out": 0.25})
        inputs = read_inputs(load_config(file))
        with_part = read_inputs(load_config(file, ["data.reference_held_out=0.2"]))
        assert inputs.held_out == with_part.held_out
        assert inputs.reference_held_out == []
        assert len(with_part.train) < len(inputs.train)

    def test_a_method_that_fits_nothing_keeps_them_out_of_training(self, write_config, tiny_model):
        config = load_config(write_config(data={"reference_held_out": 0.25}))
        inputs = tokenize_inputs(config, load_tokenizer(str(tiny_model)), 128)
        assert inputs.reference_held_out == []
        assert len({group.prompt.tobytes() for group in inputs.train}) == 12
        assert any("fits no weights to data.reference_held_out" in note for note in inputs.notes)

    @pytest.mark.parametrize(("held_out", "use"), [(None, "trained on"), ("tiny_pairs", "tested on")])
    def test_a_file_that_shares_prompts_is_refused(self, write_config, tiny_pairs, reversed_pairs, held_out, use):
        train_file = str(tiny_pairs) if held_out is None else reversed_pairs
        file = write_config(
            data={
                "train": train_file,
                "held_out": held_out and str(tiny_pairs),
                "reference_held_out": str(tiny_pairs),
            }
        )
        with pytest.raises(DataError, match=f"24 of the 24 prompts of data.reference_held_out are {use}"):
            read_inputs(load_config(file))

    @pytest.mark.parametrize("share", [0.02, 0.76])
    def test_a_share_of_no_prompt_or_of_all_is_refused_in_the_users_numbers(self, write_config, share):
        """A quarter of the 24 prompts is held out; of the other 18 these shares of the 24 take 0, or more than 18."""
        config = load_config(write_config(data={"held_out": 0.25, "reference_held_out": share}))
        with pytest.raises(DataError, match=f"data.reference_held_out is {share}: of 18 prompts to train on"):
            read_inputs(config)

    @pytest.mark.parametrize("share", [0.0, 1.0, 1.5])
    def test_a_share_lies_between_0_and_1(self, write_config, share):
        with pytest.raises(ConfigError, match="a share of prompts must lie between 0 and 1"):
            load_config(write_config(data={"reference_held_out": share}))


@pytest.mark.parametrize("weighting", ["validation_margin", "validation_accuracy", "best_single"])
def test_offline_weights_need_them(write_config, tiny_model, weighting):
    file = write_config(objective={"name": "multi_reference", "weighting": weighting}, references=[str(tiny_model)])
    with pytest.raises(ConfigError, match="none are named") as error:
        train(load_config(file))
    assert "data.reference_held_out=0.1" in error.value.fix
