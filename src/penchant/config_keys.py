"""Dotted keys of a configuration that is still nested dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from penchant.config_yaml import parse_yaml
from penchant.errors import ConfigError


def override(values: dict[str, Any], assignment: str) -> None:
    """Set one ``key=value`` in nested keys: a dotted path, and a YAML value."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise ConfigError(f"{assignment!r} is not of the form key=value", fix="as in: training.learning_rate=1e-6")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {text!r} is not a YAML value", fix=f"put it in quotes: {key}='\"...\"'") from error
    set_key(values, key, value)


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted path of nested keys; a list's section goes by its ``name``, as in ``methods.dpo``."""
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
            above = ".".join(parents[: depth + 1])
            raise ConfigError(f"{key}: {above} is {inner!r}, it has no keys below it", fix=f"as in: {above}=VALUE")
        section = inner
    section[last] = value


def _section_named(name: str, sections: Sequence[Any], key: str) -> dict[str, Any]:
    """The section of a list that has this ``name``."""
    by_name = {section["name"]: section for section in sections if isinstance(section, dict) and "name" in section}
    if name not in by_name:
        raise ConfigError(f"{key}: none of these is named {name}", fix=f"one of: {', '.join(by_name) or 'none'}")
    section: dict[str, Any] = by_name[name]
    return section
