"""Files that a recipe's stages depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from penchant.config_reward import JudgeConfig
from penchant.errors import DataError
from penchant.recipes.encoders import EncoderConfig

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


def named_weights(model: str | None) -> str | None:
    """`weights_fingerprint` of a model that may be left out: one that was trained anew under its name is another."""
    return None if model is None else weights_fingerprint(model)


def judge_settings(judge: JudgeConfig | None) -> dict[str, Any] | None:
    """A judge for a stage's settings, with its template's contents in the place of their file."""
    if judge is None:
        return None
    template = None if judge.prompt is None else fingerprint(judge.prompt)
    return judge.model_dump(mode="json") | {"prompt": template}


def encoder_settings(encoder: EncoderConfig | None) -> dict[str, Any] | None:
    """An encoder for a stage's settings, with its weights."""
    return None if encoder is None else encoder.model_dump() | {"weights": weights_fingerprint(encoder.model)}
