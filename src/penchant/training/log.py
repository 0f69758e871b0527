"""What a run writes down while it runs.

`metrics.jsonl` holds only what the configuration, data and seed determine, so that a resumed run's file is the same
byte for byte; seconds and speed go to `timing.jsonl`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


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

    def cut(self, size: int) -> None:
        """Forget what came after the first `size` bytes."""
        if self._file.exists():
            os.truncate(self._file, size)
