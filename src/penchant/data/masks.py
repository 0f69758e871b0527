"""Which tokens of a sequence are learnt from: the turns of `data.assistant_turns`, as ids."""

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
    """For each sequence which of its tokens are learnt, boundaries checked as the prompt's is; None for all behind it.

    A turn that does not end with its end of turn, as where a token spans it, is not learnt.
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
    """The ids with the tokenizer's start tokens in front once; a chat template decides itself whether to have them."""
    ids_without_start, times = special.strip_start(ids)
    if times > 1:
        events.add("duplicate_bos_removed")
    if templated and special.start and not times:
        events.add("template_without_bos")
        return ids_without_start
    return special.with_start(ids_without_start, times)
