"""Fingerprints of the files and models that a recipe's stages depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from penchant.errors import DataError

WEIGHTS = ("*.safetensors", "*.bin")


def file_fingerprint(file: str) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256, for a stage's settings.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with Path(file).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=file, fix="check the path") from error


def weights_fingerprint(model: str) -> str:
    """16 hexadecimal digits for the weights in a file or folder; the name itself where the model is on the hub."""
    path = Path(model)
    if not path.is_dir():
        return file_fingerprint(model) if path.is_file() else model
    files = sorted(file for pattern in WEIGHTS for file in path.rglob(pattern) if "checkpoints" not in file.parts)
    listing = "".join(f"{file.relative_to(path)} {file_fingerprint(str(file))}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def optional_weights_fingerprint(model: str | None) -> str | None:
    """`weights_fingerprint` of a model, or None for None; a model retrained under the same name gets another one."""
    return None if model is None else weights_fingerprint(model)
