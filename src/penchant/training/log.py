"""The files a run writes while it trains, and the direction in which each metric is better.

`metrics.jsonl` holds only what the configuration, data and seed determine, so that a resumed run's file is the same
byte for byte; seconds and speed go to `timing.jsonl`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from penchant.errors import CheckpointError
from penchant.storage.fingerprints import hash_bytes

Direction = Literal["lower", "higher"]

LOWER = ("loss", "nll_loss", "error", "rejected", "ddo_rm/kl")
"""Names, or last parts of names, of metrics that are better lower."""

NEITHER = (
    "kl",
    "ties",
    "entropy",
    "target_entropy",
    "target_reward",
    "advantage/squared",
    "multi_reference/clipped",
)
"""Names, or last parts of names, of metrics that are better neither lower nor higher."""


def direction(metric: str) -> Direction | None:
    """Whether a metric is better lower or higher; None for neither. A metric in no table is better higher."""
    names = (metric, metric.rpartition("/")[2])
    if any(name in LOWER for name in names):
        return "lower"
    if any(name in NEITHER for name in names) or metric.startswith("multi_reference/weight_"):
        return None
    return "higher"


class JsonLines:
    """A file of JSON lines that can be truncated to its size at a checkpoint."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def write(self, values: Mapping[str, object]) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    @property
    def size(self) -> int:
        """Bytes of the file; 0 where there is none."""
        return self._file.stat().st_size if self._file.exists() else 0

    def digest(self, size: int) -> str:
        """A hash of the first `size` bytes."""
        content = self._file.read_bytes()[:size] if self._file.exists() else b""
        return hash_bytes(content)

    def truncate(self, size: int, digest: str = "") -> None:
        """Drop all after the first `size` bytes.

        Args:
            digest: hash of these bytes when the checkpoint was made; empty where the checkpoint has none.

        Raises:
            CheckpointError: the file is shorter than that, or holds other bytes.
        """
        if self.size < size:
            damage = f"the file has {self.size} bytes, and had {size} when the checkpoint was made"
        elif digest and self.digest(size) != digest:
            damage = f"the first {size} bytes of the file are not those it had when the checkpoint was made"
        else:
            damage = ""
        if damage:
            raise CheckpointError(
                damage,
                where=str(self._file),
                fix=f"put the whole file back; or delete {self._file.parent / 'checkpoints'} and resume: the run "
                "begins again at its first step",
            )
        if self._file.exists():
            os.truncate(self._file, size)

    def drop_partial_line(self) -> None:
        """Drop an incomplete last line, as a full disk leaves it."""
        if self._file.exists():
            content = self._file.read_bytes()
            os.truncate(self._file, content.rfind(b"\n") + 1)
