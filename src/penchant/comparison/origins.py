"""What models come from on disk, by its hash: a path says too little, for what stands there may be another by now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penchant.comparison.cells import Planned
from penchant.config import RunConfig
from penchant.engine.loading import adapter_base
from penchant.errors import ConfigError
from penchant.evaluation.files import write_atomically
from penchant.evaluation.user_functions import import_function

FILE = "origins.json"

START = ("model", "data.chat_template")
"""What the start and its numbers come from; all else is a cell's own."""

_PARTS = (
    "*.safetensors",
    "*.bin",
    "*.jinja",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "spiece.model",
)
"""A model folder's files that are read; a run's folder holds many others, some written later."""


@dataclass
class Origins:
    """A comparison's record of them.

    Attributes:
        known: hashes that were taken; a reference is often that of many cells.
    """

    folder: Path
    known: dict[str, str] = field(default_factory=dict)

    def check(self, base: RunConfig, cells: Sequence[Planned]) -> None:
        """Refuse where the start, or what a begun cell was trained with, is another now; else record the start.

        Raises:
            ConfigError: it is.
        """
        record, now = self._record(), self._of(base, START)
        if changed := _changed(record["start"] or now, now):
            raise ConfigError(
                f"this comparison was begun with another {changed} under the same path",
                where=base.model,
                fix="put it back as it was, or name a new folder: output=DIR",
            )
        for planned in filter(_begun, cells):
            before = record["cells"].get(planned.folder.name, {})
            if changed := _changed(before, self._of_cell(planned)):
                raise ConfigError(
                    f"{planned.folder.name} was trained with another {changed} under the same path",
                    where=str(planned.folder),
                    fix="put it back as it was, or delete that cell's folder (it is trained again), or name a new one: "
                    "output=DIR",
                )
        self._write({**record, "start": now})

    def note(self, planned: Planned) -> None:
        """Record what a cell comes from, where it is only begun now."""
        if not _begun(planned):
            record = self._record()
            record["cells"][planned.folder.name] = self._of_cell(planned)
            self._write(record)

    def _record(self) -> dict[str, Any]:
        file = self.folder / FILE
        found: dict[str, Any] = {"start": {}, "cells": {}}
        return {**found, **json.loads(file.read_text(encoding="utf-8"))} if file.exists() else found

    def _write(self, record: dict[str, Any]) -> None:
        write_atomically(self.folder / FILE, json.dumps(record, indent=1))

    def _of_cell(self, planned: Planned) -> dict[str, str]:
        named = _named(planned.config)
        return self._of(planned.config, [key for key in named if key != "model"])

    def _of(self, config: RunConfig, keys: Sequence[str]) -> dict[str, str]:
        """Key of the configuration -> the hash of what it names."""
        found = {}
        for key, (place, take) in _named(config).items():
            if key in keys:
                if place not in self.known:
                    self.known[place] = take(place)
                found[key] = self.known[place]
        return found


def _begun(planned: Planned) -> bool:
    return (planned.folder / "run.json").exists()


def _changed(before: dict[str, str], now: dict[str, str]) -> str:
    """What was recorded and is another now; a name that is another is the configuration's, and told elsewhere."""
    return ", ".join(key for key in now if before.get(key, now[key]) != now[key])


def _named(config: RunConfig) -> dict[str, tuple[str, Callable[[str], str]]]:
    """Key -> what it names, and how a hash of that is taken."""
    reward = config.reward
    judge = None if reward is None else reward.judge
    named: dict[str, tuple[str | None, Callable[[str], str]]] = {
        "model": (config.model, _of_model),
        "reference": (config.reference, _of_model),
        **{f"references.{i}": (name, _of_model) for i, name in enumerate(config.references)},
        "reward.model": (None if reward is None else reward.model, _of_model),
        "reward.function": (None if reward is None else reward.function, _of_function),
        "reward.judge.prompt": (None if judge is None else judge.prompt, _of_file),
        "data.chat_template": (config.data.chat_template, _of_file),
        "objective.file": (config.objective.get("file"), _of_file),
    }
    return {key: (place, take) for key, (place, take) in named.items() if place is not None}


def _of_function(where: str) -> str:
    return import_function(where, "reward.function").digest


def _of_model(source: str) -> str:
    """Of a folder's files (an adapter's base too) or of a file; what is on the hub is told by its name."""
    place = Path(source)
    if not place.is_dir():
        return _of_file(source) if place.is_file() else source
    files = sorted({file for part in _PARTS for file in place.glob(part) if file.is_file()})
    told = "".join(f"{file.name} {_of_file(str(file))}\n" for file in files)
    base = adapter_base(source)
    return hashlib.sha256((told + ("" if base is None else _of_model(base))).encode()).hexdigest()[:16]


def _of_file(place: str) -> str:
    try:
        with Path(place).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"it cannot be read: {error.strerror}", where=place, fix="check the path") from error
