"""A real file system that is full: one clear error at whatever is being written, and nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from penchant.cli.main import run
from penchant.errors import DiskFullError
from penchant.models.loading import load_tokenizer
from penchant.storage.files import disk_errors


def make_room_until_done(disk, command: Callable[[], list[str]], capsys: pytest.CaptureFixture[str], step: int) -> int:
    """Give the command again and again with `step` kilobytes more room; returns how often the disk was full."""
    for attempt in range(200):
        disk.resize(8 + step * attempt)
        capsys.readouterr()
        code = run(command())
        message = capsys.readouterr().err
        assert "Traceback" not in message
        if code == 0:
            return attempt
        assert code == 2, message
        assert "the disk is full" in message, message
        assert str(disk.folder) in message
        assert message.count("error:") == 1
    raise AssertionError("it never had room enough")


@pytest.mark.slow
@pytest.mark.parametrize("sections", [{}, {"lora": {"rank": 2}}], ids=["full", "lora"])
def test_a_run_gets_through_however_often_the_disk_is_full(write_config, small_disk, tmp_path, capsys, sections):
    """Each checkpoint that was written is gone on from, and the end is that of a run with room."""
    file = write_config(**sections, checkpoints={"every": 1, "keep": 3})
    folder = small_disk.folder / "run"
    last_checkpoints = []

    def command() -> list[str]:
        steps = sorted(path.name for path in folder.glob("checkpoints/step-*"))
        last_checkpoints.append(steps[-1] if steps else "")
        resumed = (folder / "run.json").exists()
        return ["train", "--resume", str(folder)] if resumed else ["train", str(file), f"output={folder}"]

    times = make_room_until_done(small_disk, command, capsys, step=64)
    assert times > 3
    assert last_checkpoints == sorted(last_checkpoints)
    assert len(set(last_checkpoints)) > 2
    assert run(["train", str(file), f"output={tmp_path / 'roomy'}"]) == 0
    name = "adapter_model.safetensors" if sections else "model.safetensors"
    expected = load_file(tmp_path / "roomy" / name)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in load_file(folder / name).items())
    assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "roomy" / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_comparison_gets_through_however_often_the_disk_is_full(tiny_model, tiny_pairs, small_disk, tmp_path, capsys):
    values = {
        "base": {
            "model": str(tiny_model),
            "data": {"train": str(tiny_pairs), "held_out": 0.25},
            "training": {"max_steps": 2, "batch_size": 8},
        },
        "methods": ["dpo", "ipo"],
        "baseline": "dpo",
        "seeds": [0, 1],
        "measure": {"samples": 2, "max_new_tokens": 4},
        "output": str(small_disk.folder / "bench"),
    }
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(values))
    times = make_room_until_done(small_disk, lambda: ["compare", str(tmp_path / "bench.yaml")], capsys, step=150)
    assert times > 5
    assert (small_disk.folder / "bench" / "compare.json").exists()


def test_a_short_write_that_does_not_say_why_is_a_full_disk(small_disk):
    """torch's own writer tells "unexpected pos", and no errno."""
    with pytest.raises(DiskFullError, match="the disk is full"), disk_errors(small_disk.folder, "it"):
        torch.save({"weights": torch.zeros(100_000)}, small_disk.folder / "model.pt")


def test_a_tokenizer_that_does_not_fit_is_a_full_disk(small_disk, tiny_model):
    """Its library raises a bare Exception, and tells the system's number in words."""
    tokenizer = load_tokenizer(str(tiny_model)).backend_tokenizer
    (small_disk.folder / "filler").write_bytes(bytes(64 * 1024))
    with pytest.raises(DiskFullError, match="the disk is full"), disk_errors(small_disk.folder, "it"):
        tokenizer.save(str(small_disk.folder / "tokenizer.json"))


def test_a_short_write_with_room_left_is_not(tmp_path: Path):
    with pytest.raises(RuntimeError, match="unexpected pos"), disk_errors(tmp_path, "it"):
        raise RuntimeError("unexpected pos 576 vs 534")
