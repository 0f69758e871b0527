"""Loss masks: the turns of `data.assistant_turns` as positions in the token ids of a sequence."""

from __future__ import annotations

import numpy as np

from penchant.data.chat import GroupText
from penchant.data.prefixes import common_length
from penchant.data.special_tokens import SpecialTokens
from penchant.data.tokenized import Mask


def build_loss_masks(
    text: GroupText,
    encoded: list[list[int]],
    sequences: list[list[int]],
    boundary: int,
    special: SpecialTokens,
    events: set[str],
) -> list[Mask] | None:
    """One mask for each sequence, True for the tokens to train on; None where these are all tokens of the responses.

    A turn whose ids do not end with an end-of-turn token, for example where a token spans its end, is left out of the
    mask and counted.

    Args:
        text: texts of the group.
        encoded: token ids of `text.parts`, in their order.
        sequences: token ids of the prompt with each candidate.
        boundary: number of tokens in the prompt.
        special: special tokens of the tokenizer.
        events: names of the events to count; this function adds to them.
    """
    if not any(text.turns):
        return None
    ids_of = dict(zip(text.parts, encoded, strict=True))
    masks = []
    for turns, sequence_text, ids in zip(text.turns, text.sequences, sequences, strict=True):
        mask = np.zeros(len(ids), dtype=np.bool_)
        if turns is None:
            mask[boundary:] = True
        for turn in turns or ():
            start, end = boundary, len(ids)
            if turn.prompt is not None:
                prompt_ids = with_start_tokens(ids_of[turn.prompt], True, special, set())
                start = common_length(prompt_ids, ids)
                events |= {"boundary_moved"} if start < len(prompt_ids) else set()
            if turn.through != sequence_text:
                end = common_length(with_start_tokens(ids_of[turn.through], True, special, set()), ids)
            if ids[end - 1] in special.ends and (start < end - 1 or end == len(ids)):
                mask[start:end] = True
            else:
                events.add("assistant_turn_without_bounds_not_learnt")
        masks.append(mask)
    return masks


def with_start_tokens(ids: list[int], templated: bool, special: SpecialTokens, events: set[str]) -> list[int]:
    """The ids with the tokenizer's start tokens in front exactly once.

    Where a chat template wrote the text, start tokens are added only if it wrote some.

    Args:
        ids: token ids of the text, without special tokens added by the tokenizer.
        templated: whether a chat template wrote the text.
        special: special tokens of the tokenizer.
        events: names of the events to count; this function adds to them.
    """
    ids_without_start, times = special.strip_start(ids)
    if times > 1:
        events.add("duplicate_bos_removed")
    if templated and special.start and not times:
        events.add("template_without_bos")
        return ids_without_start
    return special.with_start(ids_without_start, times)
