"""Truncation of the beginning of prompts in groups that are too long; a response is never cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from penchant.data.special_tokens import SpecialTokens
from penchant.data.tokenized import Ids, TokenizedGroup


def truncate_prompt(group: TokenizedGroup, max_length: int, special: SpecialTokens) -> TokenizedGroup | None:
    """The group with its prompt cut at the beginning to fit the limit; None where the response alone is too long.

    Where several turns of a conversation are trained on, the first turns become prompt until the rest fits.

    Args:
        group: the group to shorten.
        max_length: limit on the tokens of the prompt with its longest response.
        special: special tokens of the tokenizer.
    """
    candidate: TokenizedGroup | None = group
    while candidate is not None:
        shorter = keep_prompt_end(candidate, max_length - (candidate.longest - len(candidate.prompt)), special)
        if shorter is not None:
            return shorter
        candidate = move_first_turn_to_prompt(candidate)
    return None


def move_first_turn_to_prompt(group: TokenizedGroup) -> TokenizedGroup | None:
    """The group with its first trained turn moved to the prompt; None for a single turn or several responses."""
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
    """The group with the start tokens and the last tokens of its prompt; None where `tokens` leaves no last token.

    Args:
        group: the group to shorten.
        tokens: number of prompt tokens to keep, including start tokens.
        special: special tokens of the tokenizer.
    """
    if tokens <= special.start_length(group.prompt.tolist()):
        return None
    prompt = keep_last_ids(group.prompt, tokens, special)
    return replace(group, prompt=prompt, truncated_tokens=group.truncated_tokens + len(group.prompt) - len(prompt))


def keep_last_ids(prompt: Ids, tokens: int, special: SpecialTokens) -> Ids:
    """[tokens] ids: the start tokens and the last tokens of a prompt.

    Args:
        prompt: [P] ids, P >= tokens.
        tokens: number of ids to keep, more than the number of start tokens.
        special: special tokens of the tokenizer.
    """
    start = special.start_length(prompt.tolist())
    return np.concatenate([prompt[:start], prompt[len(prompt) - (tokens - start) :]])
