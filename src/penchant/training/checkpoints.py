"""Checkpoints: complete or absent, checked when read, and loadable at another number of processes.

checkpoints/step-00000100/
    *.distcp, .metadata     weights, optimizer and objective state (torch.distributed.checkpoint)
    state.json              the loop's own state
    manifest.json           size and hash of each file; written last
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from penchant.engine.distribution import World
from penchant.engine.folders import disk_errors, sync
from penchant.errors import CheckpointError
from penchant.objectives import State


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, world: World, keep: int) -> None:
        self._folder, self._world, self._keep = folder, world, keep

    def latest(self) -> Path | None:
        """The last complete one."""
        found = sorted(self._folder.glob("step-*"))
        return found[-1] if found else None

    def save(
        self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: State, loop: Mapping[str, Any]
    ) -> Path:
        """Write a checkpoint aside, sync it to disk, then give it its name; drop those beyond the kept number.

        Raises:
            DiskFullError: the disk is full; earlier checkpoints are untouched.
        """
        final = self._folder / f"step-{step:08d}"
        aside = self._folder / f".writing-step-{step:08d}"
        with disk_errors(self._folder, f"penchant train --resume {self._folder.parent}"):
            if self._world.is_main:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
            self._world.barrier()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that one process is one process
                save(_tensors(module, optimizer, state), checkpoint_id=aside)
            if self._world.is_main:
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
        self, checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer, state: State
    ) -> tuple[State, dict[str, Any]]:
        """Put a checkpoint into module and optimizer; returns the objective's state and the loop's.

        Raises:
            CheckpointError: a file is missing, cut short or changed.
        """
        _verify(checkpoint)
        tensors = _tensors(module, optimizer, state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that one process is one process
            load(tensors, checkpoint_id=checkpoint)
        loop = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        return tensors["objective"], loop


def _tensors(module: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> dict[str, Any]:
    """Everything a checkpoint holds, by the parameters' names, sharded as they are; loading fills it in place.

    Written out, and not left to torch's helper, which loses tied weights once they are sharded.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        if not optimizer.state[parameter]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
    return {
        "model": {name: parameter.detach() for name, parameter in trained.items()},
        "optimizer": {name: dict(optimizer.state[parameter]) for name, parameter in trained.items()},
        "objective": dict(state),
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
