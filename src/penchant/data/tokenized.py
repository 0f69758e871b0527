"""The result of tokenization: token ids, their common prefixes, and the group that the objectives read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from penchant.data.as_chat import PLAIN_TEXT, SWITCH
from penchant.data.groups import PreferenceGroup

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
