"""Checkpoints: complete or absent, verified when they are read, loadable with another number of processes.

checkpoints/step-00000100/
    rank-*.safetensors      weights, optimizer and objective state, a reference that moves: each process's shards
    index.json              the shards of every tensor, with their offsets
    state.json              the loop's own state
    manifest.json           size and hash of each file; written last
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from penchant.engine.distributed import World
from penchant.errors import CheckpointError, reason_of
from penchant.objectives import State
from penchant.storage.files import disk_errors, is_full, new_folder, sync
from penchant.storage.fingerprints import hash_file

logger = logging.getLogger(__name__)

FORMAT = 2
INDEX = "index.json"
PART = 2**30
"""Maximum bytes of a file: tensors of a GPU pass through the host's memory one file at a time."""

Tensors = Mapping[str, Tensor]
ShardIndex = dict[str, list[dict[str, Any]]]
"""Tensor name -> one process's shards: file, offset in every dimension, and shape."""


def write_shards(tensors: Tensors, folder: Path, rank: int) -> ShardIndex:
    """Write this process's shards, and return their index."""
    index: ShardIndex = {}
    for number, part in enumerate(_parts(tensors, rank)):
        file = f"rank-{rank:05d}-{number:05d}.safetensors"
        save_file({name: shard.contiguous() for name, (shard, _) in part.items()}, folder / file)
        for name, (shard, offset) in part.items():
            index.setdefault(name, []).append({"file": file, "offset": offset, "shape": list(shard.shape)})
    return index


def write_index(tensors: Tensors, folder: Path, shards: list[ShardIndex]) -> None:
    """Write the index of all processes' shards."""
    index = {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "shards": [shard for of_rank in shards for shard in of_rank.get(name, [])],
        }
        for name, tensor in tensors.items()
    }
    (folder / INDEX).write_text(json.dumps({"format": FORMAT, "tensors": index}), encoding="utf-8")


def read_shards(tensors: Tensors, folder: Path) -> None:
    """Fill these tensors in place from the shards in a folder.

    Raises:
        CheckpointError: the index is of another format, or does not have these tensors.
    """
    index = _read_index(folder)
    try:
        with ExitStack() as stack:

            @cache
            def open_file(file: str) -> Any:
                return stack.enter_context(safe_open(folder / Path(file).name, framework="pt"))

            for name, tensor in tensors.items():
                _fill(tensor, index[name], partial(_slice, open_file, name))
    except (KeyError, TypeError, ValueError, IndexError, OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the tensor {name} cannot be read: {' '.join(str(error).split())}",
            where=str(folder),
            fix=f"delete {folder} and resume again: the run goes on from the checkpoint before it",
        ) from error


def _parts(tensors: Tensors, rank: int) -> Iterator[dict[str, tuple[Tensor, list[int]]]]:
    """This process's shards with their offsets, in parts of at most `PART` bytes."""
    part: dict[str, tuple[Tensor, list[int]]] = {}
    size = 0
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor) and rank > 0:
            continue  # All processes have the same.
        shard, offset = _local(tensor)
        if part and size + shard.nbytes > PART:
            yield part
            part, size = {}, 0
        if shard.numel():
            part[name] = shard, offset
            size += shard.nbytes
    if part:
        yield part


def _local(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """This process's shard, and its offset in every dimension."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), [0] * tensor.dim()
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local().detach(), list(offset)


def _read_index(folder: Path) -> dict[str, Any]:
    fix = "start the run again in a new folder (output=DIR), or resume it with the Penchant that wrote it"
    if (folder / ".metadata").exists():
        raise CheckpointError(
            f"the checkpoint has format 1 (torch.distributed.checkpoint); this Penchant reads format {FORMAT}, because "
            "reading format 1 runs code that its files may hold",
            where=str(folder),
            fix=fix,
        )
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        number, entries = index["format"], index["tensors"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint has no readable {INDEX}", where=str(folder), fix=fix) from error
    if number != FORMAT:
        raise CheckpointError(
            f"the checkpoint has format {number}; this Penchant reads format {FORMAT}", where=str(folder), fix=fix
        )
    return dict(entries)


def _slice(open_file: Callable[[str], Any], name: str, file: str) -> Any:
    """A lazy slice of a tensor in a file; indexing it reads."""
    return open_file(file).get_slice(name)


def _fill(tensor: Tensor, entry: Mapping[str, Any], open_shard: Callable[[str], Any]) -> None:
    """Copy this process's part of a tensor from the files.

    Args:
        open_shard: returns the lazy slice of the tensor's shard in a file.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if entry["dtype"] != dtype or entry["shape"] != list(tensor.shape):
        raise ValueError(f"it is {entry['dtype']} {entry['shape']} there, and {dtype} {list(tensor.shape)} in this run")
    target, start = _local(tensor)
    filled = 0
    for shard in entry["shards"]:
        # Each dimension's overlap, counted from the tensor's own beginning.
        low = [max(a, b) for a, b in zip(start, shard["offset"], strict=True)]
        ends = zip(start, target.shape, shard["offset"], shard["shape"], strict=True)
        high = [min(a + length, b + size) for a, length, b, size in ends]
        if any(begin >= end for begin, end in zip(low, high, strict=True)):
            continue
        values = open_shard(shard["file"])[_range(low, high, shard["offset"])]
        target[_range(low, high, start)].copy_(values)
        filled += values.numel()
    if filled != target.numel():
        raise ValueError(f"the files hold {filled} of its {target.numel()} values")


def _range(low: list[int], high: list[int], start: list[int]) -> Any:
    """The index of [low, high) relative to a start; `...` for a scalar."""
    return (
        ...
        if not low
        else tuple(slice(begin - zero, end - zero) for begin, end, zero in zip(low, high, start, strict=True))
    )


class Checkpoints:
    """The checkpoints of one run.

    Args:
        keep: number of latest checkpoints to keep.
        resume_command: what to type to resume the run, for messages.
    """

    def __init__(self, folder: Path, world: World, keep: int, resume_command: str) -> None:
        self._folder, self._world, self._keep = folder, world, keep
        self._resume_command = resume_command

    def latest(self) -> Path | None:
        """The latest complete checkpoint."""
        checkpoints = sorted(self._folder.glob("step-*"))
        return checkpoints[-1] if checkpoints else None

    def save(
        self,
        step: int,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: State,
        reference: Tensors,
        loop: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint to a temporary folder, sync it to disk and rename it; delete the oldest beyond `keep`.

        Args:
            reference: tensors of a moving reference; empty for a fixed one.

        Raises:
            DiskFullError: the disk is full; earlier checkpoints are untouched.
        """
        final = self._folder / f"step-{step:08d}"
        aside = self._folder / f".writing-step-{step:08d}"
        with disk_errors(self._folder, self._resume_command):
            if self._world.is_main:
                new_folder(aside)
            self._world.barrier()
            tensors = _tensors(module, optimizer, state, reference)
            shards = self._write(tensors, aside)
            if self._world.is_main:
                write_index(tensors, aside, shards)
                (aside / "state.json").write_text(json.dumps({**loop, "state": sorted(state)}), encoding="utf-8")
                _seal(aside)
                shutil.rmtree(final, ignore_errors=True)
                os.replace(aside, final)
                logger.debug(f"saved {final}")
                sync(self._folder)
                for old in sorted(self._folder.glob("step-*"))[: -self._keep]:
                    shutil.rmtree(old)
        self._world.barrier()
        return final

    def load(
        self,
        checkpoint: Path,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: State,
        reference: Tensors,
    ) -> tuple[State, dict[str, Any]]:
        """Put a checkpoint into module, optimizer and reference; returns the objective's state and the loop's.

        Raises:
            CheckpointError: a file is missing, cut short or changed.
        """
        _verify(checkpoint)
        state = {name: value.clone() for name, value in state.items()}
        read_shards(_tensors(module, optimizer, state, reference), checkpoint)
        loop = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        return state, loop

    def _write(self, tensors: Tensors, folder: Path) -> list[ShardIndex]:
        """Write every process's shards; where one process fails all raise, so that none waits for it."""
        failure: Exception | None = None
        shards: ShardIndex = {}
        try:
            shards = write_shards(tensors, folder, self._world.rank)
        except Exception as error:
            failure = error
        reports = self._world.gather((shards, None if failure is None else (is_full(failure), reason_of(failure))))
        if failure is not None:
            raise failure
        for rank, (_, failed) in enumerate(reports):
            if failed is not None:
                full, reason = failed
                raise OSError(errno.ENOSPC if full else errno.EIO, f"process {rank} could not write its part: {reason}")
        return [index for index, _ in reports]


def _tensors(
    module: nn.Module, optimizer: torch.optim.Optimizer, state: State, reference: Tensors
) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, sharded as the parameters are; loading fills them in place."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        if not optimizer.state[parameter]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
    return {
        **{f"model.{name}": parameter.detach() for name, parameter in trained.items()},
        **{
            f"optimizer.{name}.{key}": value
            for name, parameter in trained.items()
            for key, value in optimizer.state[parameter].items()
        },
        **{f"objective.{name}": value for name, value in state.items()},
        **{f"reference.{name}": value for name, value in reference.items()},
    }


def _seal(folder: Path) -> None:
    """Record every file's size and hash, and force all of it to disk."""
    files = {}
    for file in sorted(folder.iterdir()):
        sync(file)
        files[file.name] = {"size": file.stat().st_size, "hash": hash_file(file, "blake2b")}
    manifest = folder / "manifest.json"
    with manifest.open("w", encoding="utf-8") as text:
        json.dump(files, text)
        text.flush()
        os.fsync(text.fileno())
    sync(folder)


def _verify(checkpoint: Path) -> None:
    fix = f"delete {checkpoint} and resume again: the run goes on from the checkpoint before it"
    try:
        files = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError("the checkpoint has no readable manifest.json", where=str(checkpoint), fix=fix) from error
    for name, expected in files.items():
        file = checkpoint / name
        size = file.stat().st_size if file.exists() else 0
        if size != expected["size"]:
            message = f"the file has {size} bytes, {expected['size']} were written"
            raise CheckpointError(message, where=str(file), fix=fix)
        if hash_file(file, "blake2b") != expected["hash"]:
            raise CheckpointError("the file was changed since it was written", where=str(file), fix=fix)
