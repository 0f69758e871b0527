"""The format of checkpoints: shards in safetensors files under a JSON index, and nothing that runs when it is read."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from penchant.config.run import load_config
from penchant.engine.distributed import World
from penchant.errors import CheckpointError, DiskFullError
from penchant.training import checkpoints
from penchant.training import checkpoints as sharded_tensors
from penchant.training.checkpoints import read_shards, write_index, write_shards
from penchant.training.run import train

TENSORS = {
    "rows": torch.arange(35.0).reshape(7, 5),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "half": torch.arange(6).to(torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "turned": torch.arange(12.0).reshape(3, 4).T,
}


def write(folder: Path, tensors=TENSORS) -> None:
    write_index(tensors, folder, [write_shards(tensors, folder, 0)])


def blank() -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, -1) for name, tensor in TENSORS.items()}


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("step-*"))[-1]


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_prepared_checkpoint_runs_no_code(write_config, tmp_path):
    file = write_config()
    folder = train(load_config(file, []))
    (newest(folder) / ".metadata").write_bytes(pickle.dumps(Planted(tmp_path / "marker")))
    (newest(folder) / "manifest.json").unlink()
    checkpoints._seal(newest(folder))
    with pytest.raises(CheckpointError, match=r"format 1 .*this Penchant reads format 2") as error:
        train(load_config(file, []), resume=True)
    assert not (tmp_path / "marker").exists()
    assert error.value.where == str(newest(folder))
    assert "output=DIR" in error.value.fix


@pytest.mark.parametrize("part", [1, 100, 2**30])
def test_values_come_back_in_files_of_any_size(tmp_path, monkeypatch, part):
    monkeypatch.setattr(sharded_tensors, "PART", part)
    write(tmp_path)
    tensors = blank()
    read_shards(tensors, tmp_path)
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert len(list(tmp_path.glob("*.safetensors"))) == {1: 4, 100: 2, 2**30: 1}[part]


def test_a_tensor_is_put_together_from_the_shards_of_three_processes(tmp_path):
    rows = TENSORS["rows"]
    shards = []
    for rank, (start, end) in enumerate([(0, 3), (3, 6), (6, 7)]):
        (entry,) = write_shards({"rows": rows[start:end].clone()}, _folder(tmp_path, rank), 0)["rows"]
        file_name = f"rank-{rank:05d}-00000.safetensors"
        (tmp_path / str(rank) / entry["file"]).rename(tmp_path / file_name)
        shards.append({"rows": [{"file": file_name, "offset": [start, 0], "shape": [end - start, 5]}]})
    write_index({"rows": rows}, tmp_path, shards)
    tensors = {"rows": torch.full((7, 5), -1.0)}
    read_shards(tensors, tmp_path)
    assert torch.equal(tensors["rows"], rows)


def _folder(parent: Path, rank: int) -> Path:
    (parent / str(rank)).mkdir()
    return parent / str(rank)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda index: index.update(format=3), "format 3; this Penchant reads format 2", id="another format"
        ),
        pytest.param(lambda index: index.pop("tensors"), "no readable index.json", id="no tensors"),
        pytest.param(
            lambda index: index["tensors"].pop("rows"), "the tensor rows cannot be read: 'rows'", id="no such tensor"
        ),
        pytest.param(
            lambda index: index["tensors"]["rows"].update(shape=[5, 7]),
            r"rows .*float32 \[5, 7\] there, and float32 \[7",
            id="another shape",
        ),
        pytest.param(lambda index: index["tensors"]["rows"].update(dtype="float16"), "rows .*float16", id="dtype"),
        pytest.param(
            lambda index: index["tensors"]["rows"].update(shards=[]), "rows .*hold 0 of its 35 values", id="no shards"
        ),
        pytest.param(
            lambda index: index["tensors"]["rows"]["shards"][0].update(file="x.safetensors"),
            "rows cannot be read: No such file",
            id="missing file",
        ),
        pytest.param(
            lambda index: index["tensors"]["rows"]["shards"][0].update(offset=[-1, 0]),
            "rows .*hold 30 of its 35 values",
            id="offset below zero",
        ),
        pytest.param(
            lambda index: index["tensors"].update(rows=[]), "rows cannot be read: list indices", id="list for a tensor"
        ),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, change, message):
    write(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    change(index)
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message) as error:
        read_shards(blank(), tmp_path)
    assert error.value.where == str(tmp_path)


def test_no_file_outside_of_the_checkpoint_is_read(tmp_path):
    """The index names a readable file of the right tensors that lies elsewhere."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write(folder)
    index = json.loads((folder / "index.json").read_text())
    shard = index["tensors"]["rows"]["shards"][0]
    shutil.copy(folder / shard["file"], tmp_path / "elsewhere.safetensors")
    for file in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors")):
        shard["file"] = file
        (folder / "index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="rows cannot be read"):
            read_shards(blank(), folder)


class OtherRankFails(World):
    """The first of two processes, whose second finds its disk full."""

    def gather(self, value):
        return [value, ({}, (True, "No space left on device"))]

    def barrier(self) -> None:
        pass


def test_a_full_disk_of_another_process_is_this_ones_error_too(tmp_path):
    """It would wait for that process for ever."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    world = OtherRankFails(0, 2, torch.device("cpu"))
    store = checkpoints.Checkpoints(tmp_path / "checkpoints", world, 2, "the same command")
    with pytest.raises(DiskFullError, match="the disk is full") as error:
        store.save(1, model, optimizer, {}, {}, {})
    assert error.value.fix == "free some space, then resume with: the same command"
    assert list((tmp_path / "checkpoints").glob("step-*")) == []
