"""measured.json: a model's metrics in its folder, valid while the hashes of their inputs are the same."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penchant.comparison.cells import PlannedCell
from penchant.comparison.measure import JudgeOpponent, Measured, Measurement
from penchant.config.run import RunConfig
from penchant.errors import ConfigError
from penchant.storage.files import read_record, write_atomically
from penchant.training.input_hashes import SCHEME, Input, changed_inputs, input_hashes, named_paths

logger = logging.getLogger(__name__)

HASHES_FILE = "origins.json"

START = ("model", "data.chat_template")
"""Keys of the starting model's inputs; other keys belong to a cell."""


@dataclass
class InputHashes:
    """The recorded hashes of a comparison's models and files.

    Attributes:
        hashes: (key, path) -> hash taken so far; many cells may share a reference.
    """

    folder: Path
    hashes: dict[tuple[str, str], Input] = field(default_factory=dict)

    def check(self, base: RunConfig, cells: Sequence[PlannedCell]) -> None:
        """Check the recorded hashes of the start and of started cells, and record the start.

        Raises:
            ConfigError: the start, or an input of a started cell, has changed.
        """
        record, start = self._record(), self._hashes(base, START)
        if changes := changed_inputs(record["start"], start):
            raise ConfigError(
                f"this comparison was begun with another {', '.join(changes)} under the same path",
                where=base.model,
                fix="put it back as it was, or name a new folder: output=DIR",
            )
        for planned in filter(_is_started, cells):
            hashes = self._of_cell(planned)
            if changes := changed_inputs(record["cells"].setdefault(planned.folder.name, hashes), hashes):
                raise ConfigError(
                    f"{planned.folder.name} was trained with another {', '.join(changes)} under the same path",
                    where=str(planned.folder),
                    fix="put it back as it was, or delete that cell's folder (it is trained again), or name a new one: "
                    "output=DIR",
                )
        self._write({**record, "start": start})

    def note(self, planned: PlannedCell) -> None:
        """Record the hashes of a cell's inputs before it is started."""
        if not _is_started(planned):
            record = self._record()
            record["cells"][planned.folder.name] = self._of_cell(planned)
            self._write(record)

    def _record(self) -> dict[str, Any]:
        file = self.folder / HASHES_FILE
        fix = "put the whole file back, or name a new folder: output=DIR"
        record = read_record(file, (), fix) if file.exists() else {}
        # Records of an older Penchant were hashed differently and cannot be compared.
        return record if record.get("scheme") == SCHEME else {"scheme": SCHEME, "start": {}, "cells": {}}

    def _write(self, record: dict[str, Any]) -> None:
        write_atomically(self.folder / HASHES_FILE, json.dumps(record, indent=1))

    def _of_cell(self, planned: PlannedCell) -> dict[str, Input]:
        return self._hashes(planned.config, [key for key in named_paths(planned.config) if key != "model"])

    def _hashes(self, config: RunConfig, keys: Collection[str]) -> dict[str, Input]:
        """Hashes by key of the configuration; each path is hashed once."""
        paths = named_paths(config)
        return {key: self._hash(config, key, paths[key]) for key in keys if key in paths}

    def _hash(self, config: RunConfig, key: str, path: str) -> Input:
        if (key, path) not in self.hashes:
            self.hashes[key, path] = input_hashes(config, [key])[key]
        return self.hashes[key, path]


def _is_started(planned: PlannedCell) -> bool:
    return (planned.folder / "run.json").exists()


@dataclass(frozen=True)
class Cell:
    """One trained and measured model.

    Attributes:
        values: metric -> held-out group or fresh sample -> value.
        sources: held-out group -> its source in the data.
        samples: prompt number -> the model's fresh response.
        judge: counts of the judge's verdicts on them.
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
    """All cells of a comparison, with what is needed to report them.

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


def check_cached_results(folders: Iterable[Path], measurement: Measurement) -> None:
    """Refuse results of other settings that cannot be measured again because the weights were deleted."""
    measurement.open()
    stale = [
        (folder, changes)
        for folder in folders
        if (changes := _changed_settings(folder, measurement)) and not _has_weights(folder)
    ]
    if stale:
        folder, changes = stale[0]
        raise ConfigError(
            f"{len(stale)} cell(s) were measured with another {changes}, and their weights were not kept",
            where=str(folder),
            fix="put it back as it was, or name a new folder: output=DIR",
        )


def load_or_measure(
    folder: Path, measurement: Measurement, model: str, seed: int, opponent: JudgeOpponent | None
) -> Measured:
    """A model's results from its file, measured or judged again where the settings differ, and written there."""
    file = folder / RESULTS_FILE
    changes = _changed_settings(folder, measurement)
    if changes:
        logger.info(f"{folder.name} is measured again: it was with another {changes}")
    if changes or not file.exists():
        current = measurement.measure(model, seed)
        _write(file, current)
    else:
        current = Measured(**_read(file))
    result = measurement.judged(current, opponent)
    if result is not current:
        _write(file, result)
    gc.collect()
    return result


def throw_away_weights(folder: Path) -> None:
    """Delete all weights of a run: final, best, and checkpoints."""
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    # A checkpoint without its weights would be reported as damaged.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _changed_settings(folder: Path, measurement: Measurement) -> str:
    """The settings that differ from those of a folder's results, as text; empty where none does."""
    file = folder / RESULTS_FILE
    if not file.exists():
        return ""
    recorded, current = _read(file).get("by", {}), measurement.by
    return ", ".join(
        f"{key} (was {recorded.get(key)}, is {current[key]})"
        for key in current
        if recorded.get(key, "?") != current[key]
    )


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _read(file: Path) -> dict[str, Any]:
    return read_record(file, ("metrics", "values"), "delete it: the cell is measured again")


def _write(file: Path, result: Measured) -> None:
    write_atomically(file, json.dumps(vars(result), ensure_ascii=False))
