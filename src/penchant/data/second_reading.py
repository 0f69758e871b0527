"""Groups that one model has read, read again by a second one with a tokenizer of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from penchant.data.rendering import PLAIN, Rendering
from penchant.data.shortening import end_of_prompt, later_prompt, within
from penchant.data.special_tokens import SpecialTokens
from penchant.data.tokenization import tokenize_groups
from penchant.data.tokenized import TokenizedGroup, Truncation
from penchant.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_again(
    groups: Sequence[TokenizedGroup],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    rendering: Rendering = PLAIN,
    truncation: Truncation = "error",
) -> tuple[list[TokenizedGroup], int]:
    """The same groups by a second model's tokenizer, and how many of them it had to read less of than the first did.

    Of a prompt that was cut for the first model, the second reads the end too: the same share of its own tokens, which
    are the very same tokens where the tokenizers are alike.

    Args:
        groups: as the first model reads them.
        context: tokens the second model can read.
        rendering: how rows become text, as for the first model.
        truncation: as the groups were read with. With ``keep_end_of_prompt`` prompts too long for the second model are
            cut further, but for one that reads the first model's tokens: a shorter limit for both is exact there.

    Raises:
        DataError: groups the second model cannot read, all at once; none is ever left out.
    """
    if not groups:
        return [], 0
    special = SpecialTokens.of(tokenizer)
    uncut_groups, _ = tokenize_groups(
        [group.group for group in groups],
        tokenizer,
        max_length=sys.maxsize,
        rendering=replace(rendering, refused="error"),
    )
    second_groups: list[TokenizedGroup] = []
    refused: list[TokenizedGroup] = []
    alike, shortened = True, 0
    for first, uncut in zip(groups, uncut_groups, strict=True):
        second = _same_share(uncut, first, special)
        if second.longest > context:
            same = same_ids(first, second)
            shorter = None if same or truncation != "keep_end_of_prompt" else within(second, context, special)
            if shorter is None:
                refused.append(second)
                alike = alike and same
            else:
                second, shortened = shorter, shortened + 1
        second_groups.append(second)
    if refused:
        raise _too_long(refused, len(groups), context, alike)
    return second_groups, shortened


def same_ids(first: TokenizedGroup, second: TokenizedGroup) -> bool:
    """Whether two models read the very same tokens of a group."""
    ours, theirs = (first.prompt, *first.responses), (second.prompt, *second.responses)
    return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))


def _same_share(uncut: TokenizedGroup, first: TokenizedGroup, special: SpecialTokens) -> TokenizedGroup:
    """As much of the prompt as the first model reads of its own; rounded up, and at least one token."""
    if not first.cut:
        return uncut
    while _turns(uncut) > _turns(first) and (later := later_prompt(uncut)) is not None:
        uncut = later
    size = len(uncut.prompt)
    start = special.start_length(uncut.prompt.tolist())
    share = -(-size * len(first.prompt) // (len(first.prompt) + first.cut))
    # Start tokens alone are not a prompt's end.
    return end_of_prompt(uncut, min(size, max(share, start + 1)), special) or uncut


def _turns(group: TokenizedGroup) -> int:
    """Learnt stretches of the first response."""
    mask = group.masks[0]
    return int(mask[0]) + int((mask[1:] & ~mask[:-1]).sum())


def _too_long(refused: Sequence[TokenizedGroup], groups: int, context: int, alike: bool) -> DataError:
    worst = max(refused, key=lambda group: group.longest)
    ids = ", ".join(group.group.id for group in refused[:5]) + (", ..." if len(refused) > 5 else "")
    fix = (
        f"let both models read the same: data.max_length={context}"
        if alike
        else "name a reference with a longer context; or lower data.max_length and choose "
        "data.truncation=drop or data.truncation=keep_end_of_prompt for longer rows; a response is never cut"
    )
    return DataError(
        f"{worst.longest} tokens with the longest response, this model's context is {context} "
        f"({len(refused)} of {groups} groups like this: {ids})",
        where=f"group {worst.group.id}",
        fix=fix,
    )
