"""YAML of configurations and dotted keys; repeated keys, and aliases that unfold without end, are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from penchant.errors import ConfigError

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
