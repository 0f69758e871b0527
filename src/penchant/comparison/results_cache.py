"""measured.json: a model's numbers in its folder, good for as long as what they were measured by is the same.

Also in this module:

- What a comparison comes to.
- What a comparison's models and files hold, recorded by their hashes, and refused where they are others now.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penchant.comparison.cells import Planned
from penchant.comparison.measure import Measured, Rival, Yardstick
from penchant.config.run import RunConfig
from penchant.errors import ConfigError
from penchant.storage.files import read_record, write_atomically
from penchant.training.input_hashes import SCHEME, Input, changed_inputs, input_hashes, named_paths

logger = logging.getLogger(__name__)

HASHES_FILE = "origins.json"

START = ("model", "data.chat_template")
"""What the start and its numbers come from; all else is a cell's own."""


@dataclass
class Origins:
    """A comparison's record of them.

    Attributes:
        hashes: taken so far, by key and path; a reference is often that of many cells.
    """

    folder: Path
    hashes: dict[tuple[str, str], Input] = field(default_factory=dict)

    def check(self, base: RunConfig, cells: Sequence[Planned]) -> None:
        """Refuse where the start, or what a begun cell was trained with, is another now; else record the start.

        Raises:
            ConfigError: it is.
        """
        record, start = self._record(), self._hashes(base, START)
        if changed := changed_inputs(record["start"], start):
            raise ConfigError(
                f"this comparison was begun with another {', '.join(changed)} under the same path",
                where=base.model,
                fix="put it back as it was, or name a new folder: output=DIR",
            )
        for planned in filter(_begun, cells):
            hashes = self._of_cell(planned)
            if changed := changed_inputs(record["cells"].setdefault(planned.folder.name, hashes), hashes):
                raise ConfigError(
                    f"{planned.folder.name} was trained with another {', '.join(changed)} under the same path",
                    where=str(planned.folder),
                    fix="put it back as it was, or delete that cell's folder (it is trained again), or name a new one: "
                    "output=DIR",
                )
        self._write({**record, "start": start})

    def note(self, planned: Planned) -> None:
        """Record what a cell comes from, where it is only begun now."""
        if not _begun(planned):
            record = self._record()
            record["cells"][planned.folder.name] = self._of_cell(planned)
            self._write(record)

    def _record(self) -> dict[str, Any]:
        file = self.folder / HASHES_FILE
        fix = "put the whole file back, or name a new folder: output=DIR"
        record = read_record(file, (), fix) if file.exists() else {}
        # What an older Penchant recorded is hashed otherwise, and says nothing here.
        return record if record.get("scheme") == SCHEME else {"scheme": SCHEME, "start": {}, "cells": {}}

    def _write(self, record: dict[str, Any]) -> None:
        write_atomically(self.folder / HASHES_FILE, json.dumps(record, indent=1))

    def _of_cell(self, planned: Planned) -> dict[str, Input]:
        return self._hashes(planned.config, [key for key in named_paths(planned.config) if key != "model"])

    def _hashes(self, config: RunConfig, keys: Collection[str]) -> dict[str, Input]:
        """Hashes by key of the configuration; each path is hashed once."""
        paths = named_paths(config)
        return {key: self._hash(config, key, paths[key]) for key in keys if key in paths}

    def _hash(self, config: RunConfig, key: str, path: str) -> Input:
        if (key, path) not in self.hashes:
            self.hashes[key, path] = input_hashes(config, [key])[key]
        return self.hashes[key, path]


def _begun(planned: Planned) -> bool:
    return (planned.folder / "run.json").exists()


@dataclass(frozen=True)
class Cell:
    """One trained and measured model.

    Attributes:
        values: metric -> held-out group or fresh sample -> value.
        sources: held-out group -> where the data says it comes from.
        samples: prompt number -> the model's fresh response.
        judge: what the judge said of them, counted.
    """

    method: str
    settings: dict[str, Any]
    size: int
    seed: int
    folder: str
    metrics: dict[str, float]
    values: dict[str, dict[str, float]]
    sources: dict[str, str]
    curves: dict[str, list[tuple[int, float]]]
    cost: dict[str, float]
    failed: str | None
    samples: dict[str, str] = field(default_factory=dict)
    judge: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """All cells, and how to read them.

    Attributes:
        prompts: held-out group -> the first group of the same prompt.
    """

    title: str
    baseline: str
    model: str
    data: str
    cells: Sequence[Cell]
    prompts: Mapping[str, str]
    definitions: dict[str, str]
    primary: str
    notices: list[str]
    config_yaml: str
    judge: dict[str, Any] | None


RESULTS_FILE = "measured.json"


def check_kept(folders: Iterable[Path], yardstick: Yardstick) -> None:
    """Refuse numbers that were measured otherwise and cannot be measured again, for want of their weights."""
    yardstick.open()
    stale = [(folder, changed) for folder in folders if (changed := _changed(folder, yardstick)) and not _whole(folder)]
    if stale:
        folder, changed = stale[0]
        raise ConfigError(
            f"{len(stale)} cell(s) were measured with another {changed}, and their weights were not kept",
            where=str(folder),
            fix="put it back as it was, or name a new folder: output=DIR",
        )


def measured(folder: Path, yardstick: Yardstick, model: str, seed: int, rival: Rival | None) -> Measured:
    """From its file, measured or judged again where that was done otherwise, and written there."""
    file = folder / RESULTS_FILE
    changed = _changed(folder, yardstick)
    if changed:
        logger.info(f"{folder.name} is measured again: it was with another {changed}")
    if changed or not file.exists():
        before = yardstick.measure(model, seed)
        _write(file, before)
    else:
        before = Measured(**_read(file))
    result = yardstick.judged(before, rival)
    if result is not before:
        _write(file, result)
    gc.collect()
    return result


def throw_away_weights(folder: Path) -> None:
    """Delete all of a run's weights: the last, the best, and the checkpoints'."""
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    # A checkpoint without its weights would be a damaged one.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _changed(folder: Path, yardstick: Yardstick) -> str:
    """What a folder's numbers were measured with that is another now, in words; empty where there is nothing."""
    file = folder / RESULTS_FILE
    if not file.exists():
        return ""
    before, now = _read(file).get("by", {}), yardstick.by
    return ", ".join(f"{key} (was {before.get(key)}, is {now[key]})" for key in now if before.get(key, "?") != now[key])


def _whole(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _read(file: Path) -> dict[str, Any]:
    return read_record(file, ("metrics", "values"), "delete it: the cell is measured again")


def _write(file: Path, result: Measured) -> None:
    write_atomically(file, json.dumps(vars(result), ensure_ascii=False))
