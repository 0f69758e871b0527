"""Tokenization for a second model with another tokenizer, and mismatched responses for methods like KTO."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from penchant.data.groups import as_text
from penchant.data.rendering import PLAIN, Rendering
from penchant.data.special_tokens import SpecialTokens
from penchant.data.tokenization import tokenize_groups
from penchant.data.tokenized import (
    TokenizedGroup,
    Truncation,
    keep_prompt_end,
    move_first_turn_to_prompt,
    truncate_prompt,
)
from penchant.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def add_mismatched(groups: Sequence[TokenizedGroup], seed: int, longest: int) -> list[TokenizedGroup]:
    """The groups, each with an additional candidate drawn from the candidates of a group with another prompt.

    The draw depends on the seed and on the groups' texts, not on the tokenizer. The preferences among a group's own
    candidates are unchanged; the new candidate has none, and `mismatched` is its index.

    Args:
        groups: the tokenized groups.
        seed: seed of the draw.
        longest: limit on the tokens of prompt + response; the borrowed response is cut to it.

    Raises:
        DataError: all groups have the same prompt.
    """
    prompts = [as_text(group.group.prompt) for group in groups]
    if len(set(prompts)) < 2:
        raise DataError(
            "all groups have the same prompt, so no response to another prompt can be borrowed",
            fix="give data with several prompts, or an objective that compares candidates of one prompt",
        )
    draw = np.random.default_rng((seed, len(groups)))
    result = []
    for group, prompt in zip(groups, prompts, strict=True):
        donor = int(draw.integers(len(groups)))
        while prompts[donor] == prompt:
            donor = (donor + 1) % len(groups)
        other_group = groups[donor]
        chosen = int(draw.integers(len(other_group.responses)))
        room = max(1, longest - len(group.prompt))
        original = group.group
        extended = replace(
            original,
            candidates=(*original.candidates, other_group.group.candidates[chosen]),
            comparisons=original.pairs,
            scores=None if original.scores is None else (*original.scores, 0.0),
            ranks=None,
            preferred=None,
            labels=None if original.labels is None else (*original.labels, False),
            mismatched=len(original.candidates),
        )
        loss_masks = None
        if group.loss_masks is not None or other_group.loss_masks is not None:
            loss_masks = (*group.masks, other_group.masks[chosen][:room])
        responses = (*group.responses, other_group.responses[chosen][:room])
        result.append(TokenizedGroup(group.prompt, responses, extended, loss_masks=loss_masks))
    return result


def retokenize_groups(
    groups: Sequence[TokenizedGroup],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    rendering: Rendering = PLAIN,
    truncation: Truncation = "error",
) -> tuple[list[TokenizedGroup], int]:
    """The groups tokenized for a second model, and the number of groups whose prompts were shortened further for it.

    Of a prompt that was cut for the first model, the second model reads the end too: the same share of its own tokens,
    which are the same tokens if the tokenizers are equal.

    Args:
        groups: the groups as tokenized for the first model.
        tokenizer: tokenizer of the second model.
        context: maximum number of tokens that the second model reads.
        rendering: settings of the step from rows to text, as for the first model.
        truncation: setting that the groups were tokenized with. With ``keep_end_of_prompt``, prompts too long for the
            second model are cut further, unless both models read the same tokens: then a lower limit for both is exact.

    Raises:
        DataError: the second model cannot read some groups; the error counts all of them, and none is dropped.
    """
    if not groups:
        return [], 0
    special = SpecialTokens.from_tokenizer(tokenizer)
    uncut_groups, _ = tokenize_groups(
        [group.group for group in groups],
        tokenizer,
        max_length=sys.maxsize,
        rendering=replace(rendering, refused="error"),
    )
    second_groups: list[TokenizedGroup] = []
    too_long_groups: list[TokenizedGroup] = []
    same_tokens, shortened = True, 0
    for first_group, uncut in zip(groups, uncut_groups, strict=True):
        second_group = _keep_same_share(uncut, first_group, special)
        if second_group.longest > context:
            is_same = have_same_ids(first_group, second_group)
            shorter = (
                None
                if is_same or truncation != "keep_end_of_prompt"
                else truncate_prompt(second_group, context, special)
            )
            if shorter is None:
                too_long_groups.append(second_group)
                same_tokens = same_tokens and is_same
            else:
                second_group, shortened = shorter, shortened + 1
        second_groups.append(second_group)
    if too_long_groups:
        raise _too_long(too_long_groups, len(groups), context, same_tokens)
    return second_groups, shortened


def have_same_ids(first_group: TokenizedGroup, second_group: TokenizedGroup) -> bool:
    """Whether two models read the same token ids of a group."""
    first_ids, second_ids = (first_group.prompt, *first_group.responses), (second_group.prompt, *second_group.responses)
    return len(first_ids) == len(second_ids) and all(map(np.array_equal, first_ids, second_ids))


def _keep_same_share(uncut: TokenizedGroup, first_group: TokenizedGroup, special: SpecialTokens) -> TokenizedGroup:
    """The group with the same share of its prompt as the first model reads, rounded up, and at least one token."""
    if not first_group.truncated_tokens:
        return uncut
    while (
        _count_trained_turns(uncut) > _count_trained_turns(first_group)
        and (later := move_first_turn_to_prompt(uncut)) is not None
    ):
        uncut = later
    size = len(uncut.prompt)
    start = special.start_length(uncut.prompt.tolist())
    share = -(-size * len(first_group.prompt) // (len(first_group.prompt) + first_group.truncated_tokens))
    # At least one token must remain after the start tokens.
    return keep_prompt_end(uncut, min(size, max(share, start + 1)), special) or uncut


def _count_trained_turns(group: TokenizedGroup) -> int:
    """Number of runs of trained tokens in the first response."""
    mask = group.masks[0]
    return int(mask[0]) + int((mask[1:] & ~mask[:-1]).sum())


def _too_long(too_long_groups: Sequence[TokenizedGroup], groups: int, context: int, same_tokens: bool) -> DataError:
    worst = max(too_long_groups, key=lambda group: group.longest)
    ids = ", ".join(group.group.id for group in too_long_groups[:5]) + (", ..." if len(too_long_groups) > 5 else "")
    fix = (
        f"let both models read the same: data.max_length={context}"
        if same_tokens
        else "name a reference with a longer context; or lower data.max_length and choose "
        "data.truncation=drop or data.truncation=keep_end_of_prompt for longer rows; a response is never cut"
    )
    return DataError(
        f"{worst.longest} tokens with the longest response, this model's context is {context} "
        f"({len(too_long_groups)} of {groups} groups like this: {ids})",
        where=f"group {worst.group.id}",
        fix=fix,
    )
