"""YAML of configurations: a key that stands twice, and aliases that unfold without end, are refused."""

from __future__ import annotations

from typing import Any

import yaml

LARGEST = 100_000
"""Values of a configuration, with every alias as often as it is used."""


def parse_yaml(text: str) -> Any:
    """The value of one YAML document.

    Raises:
        yaml.YAMLError: it is not YAML, a key stands twice in one mapping, or it unfolds to more than `LARGEST` values.
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
    """How many values a node unfolds to.

    Args:
        sizes: by the nodes' ids; 0 of one that is being counted.
    """
    if (size := sizes.get(id(node))) is not None:
        if size == 0:
            raise yaml.constructor.ConstructorError(None, None, "an alias that holds itself", node.start_mark)
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
            None, None, f"it unfolds to more than {LARGEST} values", node.start_mark
        )
    sizes[id(node)] = total
    return total


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if (first := lines.get((key.tag, key.value))) is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key.value!r} stands twice, in lines {first} and {line}", key.start_mark
            )
        lines[key.tag, key.value] = line
