"""Two gloo processes with FSDP2 against one process: the same losses, checkpoints that fit both ways, clean exits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from penchant.engine.distributed import World

UPDATED = {"reference_update": "best", "evaluation": {"every": 2}}
"""The policy of step 2 is the reference from there on."""


def penchant(processes: int, *arguments: object) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    result = subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), "-m", "penchant", "train", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]


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
def test_two_processes_give_the_losses_and_checkpoints_of_one(write_config, tmp_path, sections):
    file = write_config(**sections, checkpoints={"every": 2, "keep": 5})
    one, two = tmp_path / "one", tmp_path / "two"
    penchant(1, file, f"output={one}")
    penchant(2, file, f"output={two}")
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    name = "adapter_model.safetensors" if "lora" in sections else "model.safetensors"
    expected = load_file(one / name)
    for source, processes in ((two, 1), (one, 2)):
        copy = tmp_path / f"moved-to-{processes}"
        shutil.copytree(source, copy)
        drop_checkpoints_after(copy, 2)
        penchant(processes, "--resume", copy)
        assert losses(copy) == pytest.approx(losses(one), abs=1e-6)
        for key, tensor in load_file(copy / name).items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["beta_dpo", "kto", "bradley_terry"])
def test_two_processes_give_the_losses_of_one_whatever_the_method(write_config, tmp_path, objective):
    """Statistics and draws are of the whole batch, over all processes; a reward model is sharded like any other."""
    file = write_config(objective={"name": objective})
    one, two = tmp_path / "one", tmp_path / "two"
    penchant(1, file, f"output={one}")
    penchant(2, file, f"output={two}")
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    assert len(set(losses(one))) > 3


class TestSharing:
    @pytest.mark.parametrize(("items", "size"), [(0, 2), (1, 2), (4, 2), (5, 2), (5, 3), (2, 4)])
    def test_every_item_is_counted_once_and_all_ranks_take_the_same_turns(self, items, size):
        device = torch.device("cpu")
        shares = [World(rank, size, device).share(list(range(items))) for rank in range(size)]
        assert len({len(share) for share in shares}) == 1
        assert sorted(item for share in shares for item, is_counted in share if is_counted) == list(range(items))
