"""What a comparison's models and files hold, recorded by their hashes, and refused where they are others now."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penchant.comparison.cells import Planned
from penchant.config import RunConfig
from penchant.errors import ConfigError
from penchant.evaluation.files import read_record, write_atomically
from penchant.training.input_hashes import SCHEME, Input, changed_inputs, input_hashes, named_paths

FILE = "origins.json"

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
        file = self.folder / FILE
        fix = "put the whole file back, or name a new folder: output=DIR"
        record = read_record(file, (), fix) if file.exists() else {}
        # What an older Penchant recorded is hashed otherwise, and says nothing here.
        return record if record.get("scheme") == SCHEME else {"scheme": SCHEME, "start": {}, "cells": {}}

    def _write(self, record: dict[str, Any]) -> None:
        write_atomically(self.folder / FILE, json.dumps(record, indent=1))

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
