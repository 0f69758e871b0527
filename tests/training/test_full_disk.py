"""A real file system that is full: one clear error at whatever is being written, and nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from penchant.cli.main import run
from penchant.errors import DiskFullError
from penchant.models.loading import load_tokenizer
from penchant.storage.files import disk_errors


def make_room_until_done(
    disk, command: Callable[[], list[str]], capsys: pytest.CaptureFixture[str], step: int, start: int = 8
) -> int:
    """Give the command again and again with `step` kilobytes more room; returns how often the disk was full."""
    for attempt in range(200):
        disk.resize(start + step * attempt)
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


@pytest.fixture
def interrupted_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The file, or else the module that was writing, at each full disk."""
    names: list[str] = []
    init = DiskFullError.__init__

    def recording(self: DiskFullError, *arguments: object, **keywords: object) -> None:
        cause = sys.exc_info()[1]
        if cause is not None and not isinstance(cause, DiskFullError):
            frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
            last = [frame for frame in frames if f"{os.sep}penchant{os.sep}" in frame.f_code.co_filename][-1]
            is_text = last.f_code.co_name == "write_atomically"
            names.append(last.f_locals["file"].name if is_text else Path(last.f_code.co_filename).stem)
        init(self, *arguments, **keywords)

    monkeypatch.setattr(DiskFullError, "__init__", recording)
    return names


@pytest.mark.slow
def test_a_comparison_gets_through_however_often_the_disk_is_full(
    tiny_model, tiny_pairs, small_disk, tmp_path, capsys, interrupted_files
):
    """While it trains, and with a page of memory more at a time while it writes its results."""
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
    command = ["compare", str(tmp_path / "bench.yaml")]
    times = make_room_until_done(small_disk, lambda: command, capsys, step=150)
    assert times > 5
    bench = small_disk.folder / "bench"
    late_files = sorted([*bench.glob("start/*/measured.json"), *bench.glob("compare.*[!l]"), bench / "compare.html"])
    for file in late_files:
        file.unlink()
    used_kilobytes = int(subprocess.check_output(["du", "-sk", small_disk.folder]).split()[0])
    make_room_until_done(small_disk, lambda: command, capsys, step=4, start=used_kilobytes)
    assert {"checkpoints", "compare.json"} <= {*interrupted_files}
    assert len({*interrupted_files}) > 3
    assert all(file.exists() for file in late_files)
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump({**values, "output": str(tmp_path / "roomy")}))
    assert run(command) == 0
    assert numbers(bench) == numbers(tmp_path / "roomy")


def numbers(bench: Path) -> dict[str, Any]:
    """compare.json without its folder, seconds and memory."""
    document = json.loads((bench / "compare.json").read_text())
    for variant in document["variants"]:
        variant.pop("cost", None)
    for cell in document["cells"]:
        del cell["folder"]
    del document["title"]
    return document


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
