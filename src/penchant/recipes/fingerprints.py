"""What every recipe's configuration shares."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from penchant.config import Section, override, read_yaml
from penchant.config_errors import validated
from penchant.errors import DataError

Recipe = TypeVar("Recipe", bound=Section)


def load_recipe(kind: type[Recipe], file: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe's YAML, apply ``key=value`` overrides, and check all of it.

    Raises:
        ConfigError: everything that is wrong, at once.
    """
    values = read_yaml(file)
    for each in overrides:
        override(values, each)
    return validated(kind, values, str(file))


def fingerprint(file: str) -> str:
    """A file's contents in sixteen letters, for a stage's settings.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=file, fix="check the path") from error
