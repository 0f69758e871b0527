"""Split into training and held-out groups that share no prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.overlaps import first_user_turn
from penchant.errors import DataError


def split_by_prompt(
    groups: Sequence[PreferenceGroup],
    *,
    held_out: float,
    seed: int,
    topics: Mapping[str, str] | None = None,
    together: Sequence[Sequence[str]] = (),
) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """The training groups and the held-out groups, in their original order; all groups of a prompt are on one side.

    The prompts with the smallest hashes are held out, so the side of a prompt depends on the seed and the other
    prompts, not on the order of the rows.

    Args:
        groups: the groups to split.
        held_out: share of the prompts (not of the rows), between 0 and 1; rounded to whole prompts, halves up.
        seed: seed of the hashes.
        topics: topic by text of a prompt; prompts of one topic stay together and count as one.
        together: lists with a value for each group (`column_values`, `first_user_turns`); prompts whose groups share a
            value stay together too.

    Raises:
        DataError: one side would have no prompt.
    """
    topics = topics or {}
    keys = [topics.get(text, text) for text in (as_text(group.prompt) for group in groups)]
    if together:
        keys = _merge_keys([keys, *together])
    prompts = set(keys)
    count = int(held_out * len(prompts) + 0.5) if 0 < held_out < 1 else 0
    if not 0 < count < len(prompts):
        raise DataError(
            f"a share of {held_out} of {len(prompts)} prompts leaves one side empty; expected a prompt on each side",
            fix=f"hold out between {1 / len(prompts):.2g} and {1 - 1 / len(prompts):.2g}"
            if len(prompts) > 1
            else "add groups with other prompts",
        )
    out = set(sorted(prompts, key=lambda prompt: (_hash(prompt, seed), prompt))[:count])
    keyed = list(zip(groups, keys, strict=True))
    return [group for group, key in keyed if key not in out], [group for group, key in keyed if key in out]


def column_values(groups: Sequence[PreferenceGroup], column: str) -> list[str]:
    """The value of each group in a column of its source, as JSON text.

    Raises:
        DataError: a group has no value in the column.
    """
    values = []
    for group in groups:
        columns = {"id": group.id, "source": group.source, **group.extra}
        value = columns.get(column)
        if value is None:
            names = ", ".join(name for name, column_value in columns.items() if column_value is not None)
            raise DataError(
                f"no value in '{column}'; there are {names}", where=f"group {group.id}", fix="name another column"
            )
        values.append(json.dumps(value, sort_keys=True, default=str))
    return values


def first_user_turns(groups: Sequence[PreferenceGroup]) -> list[str]:
    """The first user turn of each group, without case and extra white space."""
    return [first_user_turn(group.prompt) for group in groups]


def _merge_keys(keys: Sequence[Sequence[str]]) -> list[str]:
    """One key for each group, equal for groups that share a key directly or through other groups.

    It is the smallest of these groups' keys in the first list.
    """
    parents: dict[tuple[int, str], tuple[int, str]] = {}

    def root(node: tuple[int, str]) -> tuple[int, str]:
        while parents.setdefault(node, node) != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for row in zip(*keys, strict=True):
        first_root, *other_roots = (root(node) for node in enumerate(row))
        for other_root in other_roots:
            # The smallest key of the first list is the root, whatever the order of the rows.
            low, high = sorted((root(first_root), root(other_root)))
            parents[high] = low
            first_root = low
    return [root((0, key))[1] for key in keys[0]]


def _hash(prompt: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}{prompt}".encode(errors="surrogatepass")).digest()
