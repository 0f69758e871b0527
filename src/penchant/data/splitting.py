"""Held-out groups that share no prompt with the training groups."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from penchant.data.groups import PreferenceGroup, as_text
from penchant.errors import DataError


def split_by_prompt(
    groups: Sequence[PreferenceGroup], *, held_out: float, seed: int, topics: Mapping[str, str] | None = None
) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """Training and held-out groups, each in the given order; a prompt's groups stay together.

    The prompts with the smallest hashes are held out, so a prompt's side depends on the seed and the other prompts,
    not on the order of rows.

    Args:
        held_out: share of the prompts (not of the rows), between 0 and 1; rounded to whole prompts, halves up.
        topics: of some prompts' texts, what they are about: prompts of one topic stay together and count as one.

    Raises:
        DataError: a side would be left without a prompt.
    """
    topics = topics or {}
    of = [topics.get(text, text) for text in (as_text(group.prompt) for group in groups)]
    prompts = set(of)
    count = int(held_out * len(prompts) + 0.5) if 0 < held_out < 1 else 0
    if not 0 < count < len(prompts):
        raise DataError(
            f"a share of {held_out} of {len(prompts)} prompts leaves one side empty; expected a prompt on each side",
            fix=f"hold out between {1 / len(prompts):.2g} and {1 - 1 / len(prompts):.2g}"
            if len(prompts) > 1
            else "add groups with other prompts",
        )
    out = set(sorted(prompts, key=lambda prompt: (_hash(prompt, seed), prompt))[:count])
    sides = [[group for group, key in zip(groups, of, strict=True) if (key in out) == held] for held in (False, True)]
    return sides[0], sides[1]


def _hash(prompt: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}{prompt}".encode(errors="surrogatepass")).digest()
