"""Files that a recipe's stages depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from penchant.errors import DataError


def fingerprint(file: str) -> str:
    """A file's contents in sixteen letters, for a stage's settings.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=file, fix="check the path") from error
