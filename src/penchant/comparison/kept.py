"""measured.json: a model's numbers in its folder, good for as long as what they were measured by is the same."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from penchant.comparison.measure import Measured, Rival, Yardstick
from penchant.errors import ConfigError
from penchant.evaluation.files import read_record, write_atomically

FILE = "measured.json"


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
    file = folder / FILE
    changed = _changed(folder, yardstick)
    if changed:
        yardstick.tell(f"{folder.name} is measured again: it was with another {changed}")
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
    file = folder / FILE
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
