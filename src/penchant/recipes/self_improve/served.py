"""The file that names the served learner; it is replaced atomically."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from penchant.evaluation.files import read_record, write_atomically

FILE = "served.json"
DAMAGED = "put the whole file back, or name another output folder"
"""Suggested fix for a damaged file of the run."""


@dataclass(frozen=True)
class ServedModel:
    """A learner that is or was served.

    Attributes:
        update: number of the update that made it; 0 for the first learner.
        model: folder or hub id.
    """

    update: int
    model: str


def read_served(folder: Path) -> ServedModel | None:
    """The served learner; None before the first one is written."""
    file = folder / FILE
    if not file.exists():
        return None
    record = read_record(file, ("update", "model"), DAMAGED)
    return ServedModel(record["update"], record["model"])


def write_served(folder: Path, served: ServedModel) -> None:
    """Serve this learner from now on."""
    write_atomically(folder / FILE, json.dumps(asdict(served)) + "\n")
