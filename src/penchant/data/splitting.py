"""Held-out groups that share no prompt with the training groups."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from penchant.data.groups import PreferenceGroup, as_text
from penchant.errors import DataError


def split_by_prompt(
    groups: Sequence[PreferenceGroup], *, held_out: float, seed: int
) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """Training and held-out groups, each in the given order; a prompt's groups stay together.

    The prompts with the smallest hashes are held out, so a prompt's side depends on the seed and the other prompts,
    not on the order of rows.

    Args:
        held_out: share of the prompts (not of the rows), between 0 and 1; rounded to whole prompts, halves up.

    Raises:
        DataError: a side would be left without a prompt.
    """
    prompts = {as_text(group.prompt) for group in groups}
    count = int(held_out * len(prompts) + 0.5) if 0 < held_out < 1 else 0
    if not 0 < count < len(prompts):
        raise DataError(
            f"a share of {held_out} of {len(prompts)} prompts leaves one side empty; expected a prompt on each side",
            fix=f"hold out between {1 / len(prompts):.2g} and {1 - 1 / len(prompts):.2g}"
            if len(prompts) > 1
            else "add groups with other prompts",
        )
    out = set(sorted(prompts, key=lambda prompt: (_hash(prompt, seed), prompt))[:count])
    train = [group for group in groups if as_text(group.prompt) not in out]
    return train, [group for group in groups if as_text(group.prompt) in out]


def _hash(prompt: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}{prompt}".encode(errors="surrogatepass")).digest()
