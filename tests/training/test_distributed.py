"""Two gloo processes with FSDP2 against one process: the same losses, checkpoints that fit both ways, clean exits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from penchant.config.run import load_config
from penchant.engine.distributed import World
from penchant.training.run import train as train_here

UPDATED = {"reference_update": "best", "evaluation": {"every": 2}}
"""The policy of step 2 is the reference from there on."""


@pytest.fixture
def train(start_ranks: Callable[..., Any]) -> Callable[..., None]:
    """Train on a number of processes, all of which are to end well.

    One is this process, more are forks of `penchant train` (test_stop_signals.py uses torchrun).
    """

    def run(processes: int, file: Path, output: Path, *, resume: bool = False) -> None:
        if processes == 1:
            train_here(load_config(file, [f"output={output}"]), resume=resume)
            return
        ranks = start_ranks(processes, "train", *(["--resume", output] if resume else [file, f"output={output}"]))
        codes = [process.wait(90) for process, _, _ in ranks]
        assert codes == [0] * processes, "\n".join(errors.read_text()[-3000:] for _, _, errors in ranks)

    return run


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("eval_loss")) for line in lines]


def drop_checkpoints_after(folder: Path, step: int) -> None:
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"lora": {"rank": 4}},
        {"lora": {"rank": 4, "targets": ["embed_tokens", "lm_head"]}},
        UPDATED,
        {"lora": {"rank": 4}, **UPDATED},
    ],
    ids=["full", "lora", "lora on embedding and head", "updated reference", "lora and updated reference"],
)
def test_two_processes_give_the_losses_and_checkpoints_of_one(write_config, tmp_path, train, sections):
    file = write_config(**sections, checkpoints={"every": 2, "keep": 5})
    one, two = tmp_path / "one", tmp_path / "two"
    train(1, file, one)
    train(2, file, two)
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    name = "adapter_model.safetensors" if "lora" in sections else "model.safetensors"
    expected = load_file(one / name)
    for source, processes in ((two, 1), (one, 2)):
        copy = tmp_path / f"moved-to-{processes}"
        shutil.copytree(source, copy)
        drop_checkpoints_after(copy, 2)
        train(processes, file, copy, resume=True)
        assert losses(copy) == pytest.approx(losses(one), abs=1e-6)
        for key, tensor in load_file(copy / name).items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["beta_dpo", "kto", "bradley_terry"])
def test_two_processes_give_the_losses_of_one_whatever_the_method(write_config, tmp_path, train, objective):
    """Statistics and draws are of the whole batch, over all processes; a reward model is sharded like any other."""
    file = write_config(objective={"name": objective})
    one, two = tmp_path / "one", tmp_path / "two"
    train(1, file, one)
    train(2, file, two)
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    assert len(set(losses(one))) > 3


class TestSharing:
    @pytest.mark.parametrize(("items", "size"), [(0, 2), (1, 2), (4, 2), (5, 2), (5, 3), (2, 4)])
    def test_every_item_is_counted_once_and_all_ranks_take_the_same_turns(self, items, size):
        device = torch.device("cpu")
        shares = [World(rank, size, device).share(list(range(items))) for rank in range(size)]
        assert len({len(share) for share in shares}) == 1
        assert sorted(item for share in shares for item, is_counted in share if is_counted) == list(range(items))
