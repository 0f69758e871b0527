"""What every recipe's configuration shares."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from penchant.config import override, read_yaml
from penchant.config_errors import explain
from penchant.errors import ConfigError, DataError


class Section(BaseModel):
    """Keys of a recipe's file; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


Recipe = TypeVar("Recipe", bound=Section)


def load_recipe(kind: type[Recipe], file: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe's YAML, apply ``key=value`` overrides, and check all of it.

    Raises:
        ConfigError: everything that is wrong, at once.
    """
    values = read_yaml(file)
    for each in overrides:
        override(values, each)
    return parse_recipe(kind, values, str(file))


def parse_recipe(kind: type[Recipe], values: dict[str, Any], where: str) -> Recipe:
    """Check a configuration given as a dictionary; see `load_recipe`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [explain(dict(problem), kind) for problem in error.errors()]
    raise ConfigError(
        "\n  - ".join([f"{len(problems)} problem(s) in the configuration", *problems]),
        where=where,
        fix="correct these keys in the file, or give them on the command line: key=value",
    )


def fingerprint(file: str) -> str:
    """A file's contents in sixteen letters, for a stage's settings.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=file, fix="check the path") from error
