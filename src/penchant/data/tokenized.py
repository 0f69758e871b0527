"""What tokenization hands to the engine: ids, and the facts the objectives read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penchant.data.as_chat import PLAIN_TEXT, SWITCH
from penchant.data.groups import PreferenceGroup

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]
Truncation = Literal["error", "drop", "keep_end_of_prompt"]
ADVICE = {PLAIN_TEXT: SWITCH}
"""What to do about an event that a setting decides."""


@dataclass(frozen=True)
class TokenizedGroup:
    """Token ids of one group. ``prompt + responses[k]`` is exactly what the model reads for candidate k.

    Attributes:
        prompt: [P] ids, P >= 1; the tokens common to all candidates' sequences.
        responses: K arrays of ids, each at least one long; the last id is the end-of-turn token.
        group: the group the ids come from.
        truncated_tokens: tokens of the prompt that were left out at its beginning.
        loss_masks: K masks, one per response: True where a token is the assistant's, and is counted and trained on;
            None where all are. The others, as a user's turns between the assistant's, are only read.
    """

    prompt: Ids
    responses: tuple[Ids, ...]
    group: PreferenceGroup
    truncated_tokens: int = 0
    loss_masks: tuple[Mask, ...] | None = None

    @property
    def masks(self) -> tuple[Mask, ...]:
        """`loss_masks`, all True where it is None."""
        return self.loss_masks or tuple(np.ones(len(response), dtype=np.bool_) for response in self.responses)

    @property
    def tokens(self) -> tuple[int, ...]:
        """How many tokens of each response are learnt from."""
        if self.loss_masks is None:
            return tuple(map(len, self.responses))
        return tuple(int(mask.sum()) for mask in self.loss_masks)

    @property
    def length(self) -> int:
        """Tokens of the group's tree: the prompt once, and every response."""
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence: the prompt and its longest response."""
        return len(self.prompt) + max(map(len, self.responses))


@dataclass
class TokenizationReport:
    """What happened to the rows, by name; nothing happens to a row without being counted here.

    Attributes:
        groups: groups that came in.
        counts: how many groups (or candidates, as the name says) met each event.
        examples: for each event, the ids of the first few groups it happened to.
    """

    groups: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, event: str, group_id: str) -> None:
        """Count `event` for the group, keeping its first few ids as examples."""
        self.counts[event] += 1
        example_ids = self.examples.setdefault(event, [])
        if len(example_ids) < 5 and group_id not in example_ids:
            example_ids.append(group_id)

    def lines(self) -> list[str]:
        """A line for each event: how often, in which groups first, and what to do about it where there is a choice."""
        lines = []
        for event, count in sorted(self.counts.items()):
            ids = self.examples.get(event, [])
            groups = f" ({', '.join(ids)}{', ...' if count > len(ids) else ''})" if ids else ""
            advice = f"; {ADVICE[event]}" if event in ADVICE else ""
            lines.append(f"{event.replace('_', ' ')}: {count} of {self.groups} groups{groups}{advice}")
        return lines
