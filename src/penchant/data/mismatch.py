"""Mismatched responses (responses to another prompt) for methods that estimate a KL divergence from them (KTO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from penchant.data.groups import as_text
from penchant.data.tokenized import TokenizedGroup
from penchant.errors import DataError


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
        other = int(draw.integers(len(groups)))
        while prompts[other] == prompt:
            other = (other + 1) % len(groups)
        other_group = groups[other]
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
