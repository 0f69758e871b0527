"""Files that a recipe's stages depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from penchant.errors import DataError

WEIGHTS = ("*.safetensors", "*.bin")


def fingerprint(file: str) -> str:
    """A file's contents in sixteen letters, for a stage's settings.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Path(file).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=file, fix="check the path") from error


def weights_fingerprint(model: str) -> str:
    """A model's weights in sixteen letters: of a file, or of a folder's; what is on the hub is told by its name."""
    place = Path(model)
    if not place.is_dir():
        return fingerprint(model) if place.is_file() else model
    files = sorted(file for kind in WEIGHTS for file in place.rglob(kind) if "checkpoints" not in file.parts)
    told = "".join(f"{file.relative_to(place)} {fingerprint(str(file))}\n" for file in files)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
