"""Groups that are too long, without the beginning of their prompts; a response is never cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from penchant.data.special_tokens import SpecialTokens
from penchant.data.tokenized import Ids, TokenizedGroup


def truncate_prompt(group: TokenizedGroup, max_length: int, special: SpecialTokens) -> TokenizedGroup | None:
    """The group without the first tokens of its prompt, of at most so many tokens; None where its response is too long.

    Where several turns of a conversation are learnt, the first of them become prompt until the rest fits.
    """
    candidate: TokenizedGroup | None = group
    while candidate is not None:
        shorter = keep_prompt_end(candidate, max_length - (candidate.longest - len(candidate.prompt)), special)
        if shorter is not None:
            return shorter
        candidate = move_first_turn_to_prompt(candidate)
    return None


def move_first_turn_to_prompt(group: TokenizedGroup) -> TokenizedGroup | None:
    """The group with the first of its learnt turns as prompt; None for a single turn, or several responses."""
    if group.loss_masks is None or len(group.responses) > 1:
        return None
    [mask], [response] = group.loss_masks, group.responses
    behind = int(mask.argmin()) if not mask.all() else len(mask)
    if not mask[behind:].any():
        return None
    start = behind + int(mask[behind:].argmax())
    shorter_mask = mask[start:]
    return replace(
        group,
        prompt=np.concatenate([group.prompt, response[:start]]),
        responses=(response[start:],),
        loss_masks=None if shorter_mask.all() else (shorter_mask,),
    )


def keep_prompt_end(group: TokenizedGroup, tokens: int, special: SpecialTokens) -> TokenizedGroup | None:
    """The group with so many tokens of its prompt, the start tokens and the last; None without room for one of each."""
    if tokens <= special.start_length(group.prompt.tolist()):
        return None
    prompt = keep_last_ids(group.prompt, tokens, special)
    return replace(group, prompt=prompt, truncated_tokens=group.truncated_tokens + len(group.prompt) - len(prompt))


def keep_last_ids(prompt: Ids, tokens: int, special: SpecialTokens) -> Ids:
    """So many tokens of a prompt that has more: its start tokens, and the last; room for one of these is needed."""
    start = special.start_length(prompt.tolist())
    return np.concatenate([prompt[:start], prompt[len(prompt) - (tokens - start) :]])
