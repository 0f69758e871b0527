"""Sections of configurations: their base class, the YAML they are read from, and the description of errors in them.

Repeated keys in YAML, and aliases that unfold without end, are refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from penchant.errors import ConfigError, rename_options

LARGEST = 100_000
"""Maximum number of values of a configuration; an aliased value counts each time it is used."""


def parse_yaml(text: str) -> Any:
    """The value of one YAML document.

    Raises:
        yaml.YAMLError: the text is not YAML, contains a key twice in a mapping, or has over `LARGEST` values.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {})
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    finally:
        loader.dispose()


def _check(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Number of values to which a node expands.

    Args:
        sizes: number of values by the id of the node; 0 for a node whose count is not complete.
    """
    if (size := sizes.get(id(node))) is not None:
        if size == 0:
            raise yaml.constructor.ConstructorError(None, None, "an alias contains itself", node.start_mark)
        return size
    sizes[id(node)] = 0
    total = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        total += sum(_check(key, sizes) + _check(value, sizes) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_check(item, sizes) for item in node.value)
    if total > LARGEST:
        raise yaml.constructor.ConstructorError(
            None, None, f"it expands to more than {LARGEST} values", node.start_mark
        )
    sizes[id(node)] = total
    return total


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if (earlier_line := lines.get((key.tag, key.value))) is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key.value!r} appears twice, in lines {earlier_line} and {line}", key.start_mark
            )
        lines[key.tag, key.value] = line


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; a ConfigError where it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError("there is no such file", where=str(file), fix="name the run's YAML file") from error
    except IsADirectoryError as error:
        raise ConfigError(
            "this is a folder", where=str(file), fix=f"to resume a run, type: penchant train --resume {file}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"byte {error.start} is not UTF-8", where=str(file), fix="save it as UTF-8") from error
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"this is not YAML: {' '.join(str(error).split())}",
            where=str(file),
            fix="correct the named line; a text with a colon or a bracket needs quotes",
        ) from error
    if not isinstance(values, dict):
        raise ConfigError("the file has no keys", where=str(file), fix="see examples/dpo.yaml for the needed keys")
    return values


def override(values: dict[str, Any], assignment: str) -> None:
    """Apply one ``key=value`` assignment: a dotted key and a YAML value."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise ConfigError(f"{assignment!r} is not of the form key=value", fix="as in: training.learning_rate=1e-6")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {text!r} is not a YAML value", fix=f"put it in quotes: {key}='\"...\"'") from error
    set_key(values, key, value)


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key; sections in a list are addressed by their ``name``, as in ``methods.dpo``."""
    section: Any = values
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        if isinstance(section, list):
            section = _section_named(parent, section, key)
            continue
        inner = section.setdefault(parent, {})
        if parent == "data" and isinstance(inner, str):
            inner = section[parent] = {"train": inner}
        if inner is None:
            inner = section[parent] = {}
        if not isinstance(inner, dict) and not (isinstance(inner, list) and parents[depth + 1 :]):
            parent_path = ".".join(parents[: depth + 1])
            raise ConfigError(
                f"{key}: {parent_path} is {inner!r}, and not a section with keys", fix=f"as in: {parent_path}=VALUE"
            )
        section = inner
    section[last] = value


def _section_named(name: str, sections: Sequence[Any], key: str) -> dict[str, Any]:
    """The section of a list with this ``name``."""
    by_name = {section["name"]: section for section in sections if isinstance(section, dict) and "name" in section}
    if name not in by_name:
        raise ConfigError(f"{key}: none of these is named {name}", fix=f"one of: {', '.join(by_name) or 'none'}")
    section: dict[str, Any] = by_name[name]
    return section


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
