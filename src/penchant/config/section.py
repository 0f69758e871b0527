"""The base class of all configuration sections, and the description of errors in them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from penchant.errors import ConfigError, rename_options

Model = TypeVar("Model", bound=BaseModel)
SECRET = "secret"
"""Type of the pydantic errors whose input is never printed, because it may contain a key."""


def validated(kind: type[Model], values: dict[str, Any], where: str) -> Model:
    """The configuration that a dictionary describes, after all checks.

    Raises:
        ConfigError: all problems at once.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise refusal([explain(dict(problem), kind) for problem in error.errors()], where) from error


def refusal(problems: Sequence[str], where: str) -> ConfigError:
    """One error that lists all problems of a configuration."""
    return ConfigError(
        "\n  - ".join([f"{len(problems)} problem(s) in the configuration", *problems]),
        where=where,
        fix="correct these keys in the file, or give them on the command line: key=value",
    )


def explain(problem: dict[str, Any], root: type[BaseModel] | None = None) -> str:
    """The message for one of pydantic's errors.

    Args:
        root: the model at which the key's path starts, for the nearest valid names.
    """
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"{key}: there is no such key{nearest(path[-1], _known_keys(root, path[:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: this key is needed"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == SECRET:
        return f"{key}: {message}"
    if problem["type"] == "value_error" and path:
        message = rename_options(message, {f"{name}.": f"{key}.{name}." for name in _known_keys(root, path)})
        if message.startswith(f"{key}."):
            return message
    actual_value = f", found {_shorten(problem['input'])}" if problem["type"] != "value_error" or path else ""
    return f"{key}: {message[0].lower()}{message[1:]}{actual_value}" if key else message


def nearest(name: str, valid_names: Iterable[str]) -> str:
    """The text `` (did you mean ...?)`` with the nearest valid name; empty where no valid name is similar."""
    match = difflib.get_close_matches(name, list(valid_names), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


def _known_keys(root: type[BaseModel] | None, path: Sequence[str]) -> list[str]:
    section: Any = root
    for part in path:
        fields = getattr(section, "model_fields", {})
        if part not in fields:
            continue  # a list's index, or a union's tag
        annotation = fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return list(getattr(section, "model_fields", {}))


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Section(BaseModel):
    """Base class of the sections of configurations; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
