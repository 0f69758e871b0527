"""The result of tokenization: token ids, their common prefixes, the group that the objectives read; and its shortening.

A group that is too long loses the beginning of its prompt; a response is never cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from penchant.data.groups import PreferenceGroup
from penchant.data.rendering import PLAIN_TEXT, SWITCH
from penchant.data.special_tokens import SpecialTokens

Item = TypeVar("Item")


def common_length(sequence: Sequence[Item], other_sequence: Sequence[Item]) -> int:
    """Length of the common prefix of two texts or two lists."""
    if other_sequence[: len(sequence)] == sequence:
        return len(sequence)
    shortest = min(len(sequence), len(other_sequence))
    return next((i for i, (a, b) in enumerate(zip(sequence, other_sequence, strict=False)) if a != b), shortest)


Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]
Truncation = Literal["error", "drop", "keep_end_of_prompt"]
ADVICE = {PLAIN_TEXT: SWITCH}
"""Advice on an event that a setting decides."""


@dataclass(frozen=True)
class TokenizedGroup:
    """Token ids of one group; for candidate k the model reads exactly ``prompt + responses[k]``.

    Attributes:
        prompt: [P] ids, P >= 1: the tokens common to all candidates' sequences.
        responses: K arrays of ids, at least one id each; the last id is the end-of-turn token.
        group: the group that the ids come from.
        truncated_tokens: number of tokens that were cut at the beginning of the prompt.
        loss_masks: K masks, one per response: True for the assistant's tokens, which are counted and trained on; None
            where all are. Other tokens, such as a user's turn between two of the assistant's, are only read.
    """

    prompt: Ids
    responses: tuple[Ids, ...]
    group: PreferenceGroup
    truncated_tokens: int = 0
    loss_masks: tuple[Mask, ...] | None = None

    @property
    def masks(self) -> tuple[Mask, ...]:
        """K masks: `loss_masks`, or all True where that is None."""
        return self.loss_masks or tuple(np.ones(len(response), dtype=np.bool_) for response in self.responses)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Number of trained tokens of each response."""
        if self.loss_masks is None:
            return tuple(map(len, self.responses))
        return tuple(int(mask.sum()) for mask in self.loss_masks)

    @property
    def length(self) -> int:
        """Number of tokens in the group's tree: the prompt once, and every response."""
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def longest(self) -> int:
        """Number of tokens in the longest sequence: the prompt and its longest response."""
        return len(self.prompt) + max(map(len, self.responses))


@dataclass
class TokenizationReport:
    """Counts of the events of tokenization; every change to a row is counted here.

    Attributes:
        groups: number of groups before tokenization.
        counts: number of groups (or candidates, where the name says so) by event.
        examples: ids of the first few groups by event.
    """

    groups: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, event: str, group_id: str) -> None:
        """Count an event of a group, and keep the first few ids as examples."""
        self.counts[event] += 1
        example_ids = self.examples.setdefault(event, [])
        if len(example_ids) < 5 and group_id not in example_ids:
            example_ids.append(group_id)

    def lines(self) -> list[str]:
        """One line per event: its count, the first groups, and advice where a setting decides it."""
        lines = []
        for event, count in sorted(self.counts.items()):
            ids = self.examples.get(event, [])
            groups = f" ({', '.join(ids)}{', ...' if count > len(ids) else ''})" if ids else ""
            advice = f"; {ADVICE[event]}" if event in ADVICE else ""
            lines.append(f"{event.replace('_', ' ')}: {count} of {self.groups} groups{groups}{advice}")
        return lines


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
