"""Which learner answers now: one small file, replaced whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from penchant.evaluation.files import write_atomically

FILE = "served.json"


@dataclass(frozen=True)
class Served:
    """A learner.

    Attributes:
        update: 0 is the one it all began with.
        model: folder or hub id.
    """

    update: int
    model: str


def read_served(folder: Path) -> Served | None:
    """None before the first is named."""
    file = folder / FILE
    return Served(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def serve(folder: Path, served: Served) -> None:
    """From now on this one answers."""
    write_atomically(folder / FILE, json.dumps(asdict(served)) + "\n")
