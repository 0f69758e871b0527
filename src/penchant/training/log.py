"""The files a run writes while it trains, and the direction in which each metric is better.

`metrics.jsonl` holds only what the configuration, data and seed determine, so that a resumed run's file is the same
byte for byte; seconds and speed go to `timing.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from penchant.errors import CheckpointError

Direction = Literal["lower", "higher"]

LOWER = ("loss", "nll_loss", "error", "rejected", "ddo_rm/kl")
"""Names, or their last parts, of what is better lower."""

NEITHER = (
    "kl",
    "ties",
    "entropy",
    "target_entropy",
    "target_reward",
    "advantage/squared",
    "multi_reference/clipped",
)
"""Of what describes a run and says not how good it is."""


def direction(metric: str) -> Direction | None:
    """Which way a metric is better; None where neither way is. A name that is in no table is better higher."""
    names = (metric, metric.rpartition("/")[2])
    if any(name in LOWER for name in names):
        return "lower"
    if any(name in NEITHER for name in names) or metric.startswith("multi_reference/weight_"):
        return None
    return "higher"


class JsonLines:
    """A file of JSON lines that can be cut back to where a checkpoint was made."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def write(self, values: Mapping[str, object]) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._file.stat().st_size if self._file.exists() else 0

    def digest(self, size: int) -> str:
        """A hash of the first `size` bytes."""
        content = self._file.read_bytes()[:size] if self._file.exists() else b""
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def cut(self, size: int, digest: str = "") -> None:
        """Forget what came after the first `size` bytes.

        Args:
            digest: of these bytes when the checkpoint was made; empty where the checkpoint holds none.

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

    def cut_last_part(self) -> None:
        """Forget a last line that was not written whole, as a full disk leaves it."""
        if self._file.exists():
            content = self._file.read_bytes()
            os.truncate(self._file, content.rfind(b"\n") + 1)
