"""Checkpoints: complete or absent, checked when read, and loadable at another number of processes.

checkpoints/step-00000100/
    rank-*.safetensors      weights, optimizer and objective state, a reference that moves: each process's shards
    index.json              which shards a tensor has, and where they begin
    state.json              the loop's own state
    manifest.json           size and hash of each file; written last
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penchant.engine.distribution import World
from penchant.engine.folders import disk_errors, is_full, new_folder, sync
from penchant.errors import CheckpointError, reason_of
from penchant.objectives import State
from penchant.training.sharded_tensors import ShardIndex, Tensors, read_shards, write_index, write_shards


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, world: World, keep: int) -> None:
        self._folder, self._world, self._keep = folder, world, keep

    def latest(self) -> Path | None:
        """The last complete one."""
        found = sorted(self._folder.glob("step-*"))
        return found[-1] if found else None

    def save(
        self,
        step: int,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: State,
        reference: Tensors,
        loop: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint aside, sync it to disk, then give it its name; drop those beyond the kept number.

        Args:
            reference: tensors of a reference that moves; none of one that stays.

        Raises:
            DiskFullError: the disk is full; earlier checkpoints are untouched.
        """
        final = self._folder / f"step-{step:08d}"
        aside = self._folder / f".writing-step-{step:08d}"
        with disk_errors(self._folder, f"penchant train --resume {self._folder.parent}"):
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
        """Write every process's shards; where one fails all do, so that none waits for it."""
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
    """Everything a checkpoint holds, by the parameters' names, sharded as they are; loading fills it in place."""
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
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            files[file.name] = {"size": file.stat().st_size, "hash": hashlib.file_digest(stream, "blake2b").hexdigest()}
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
            found = f"the file has {size} bytes, {expected['size']} were written"
            raise CheckpointError(found, where=str(file), fix=fix)
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "blake2b").hexdigest() != expected["hash"]:
                raise CheckpointError("the file was changed since it was written", where=str(file), fix=fix)
