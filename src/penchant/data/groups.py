"""A preference group: one prompt, its K candidate responses, and what is known of their worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from penchant.data.messages import Message, Text, as_text, response_messages

__all__ = ["Message", "PreferenceGroup", "Text", "as_messages", "as_text"]


@dataclass(frozen=True)
class PreferenceGroup:
    """One prompt and its K >= 1 candidates.

    What is known of the candidates' worth is in any of five fields; `pairs` derives who beats whom from the first of
    them, in the order below, that is not None.

    Attributes:
        prompt: text, or the messages before the response; a `Conversation` where tools, documents or template
            variables come with them.
        candidates: K responses, each text or messages (most often one assistant message).
        comparisons: explicit (better, worse) index pairs; a pair that is absent is a tie or was not compared.
        scores: K numbers, higher is better; equal scores are a tie.
        ranks: K ranks, 1 is the best; equal ranks are a tie.
        preferred: index of the one candidate preferred to all the others.
        labels: K yes/no labels (unpaired data: K = 1).
        id: from the data, or the row's 0-based number.
        weight: how much the group counts in the loss, > 0.
        source: where the group comes from, for breakdowns; None when the data does not say.
        mismatched: index of a candidate that answers another prompt (see `data.mismatch`); nothing else holds of it.
        extra: the columns of the source's row that its format does not read, by the source's names.
    """

    prompt: Text
    candidates: tuple[Text, ...]
    comparisons: tuple[tuple[int, int], ...] | None = None
    scores: tuple[float, ...] | None = None
    ranks: tuple[int, ...] | None = None
    preferred: int | None = None
    labels: tuple[bool, ...] | None = None
    id: str = "0"
    weight: float = 1.0
    source: str | None = None
    mismatched: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        k = len(self.candidates)
        if k == 0:
            raise ValueError("a group needs at least one candidate")
        for name in ("scores", "ranks", "labels"):
            values = getattr(self, name)
            if values is not None and len(values) != k:
                raise ValueError(f"{k} candidates but {len(values)} {name}")
        if self.preferred is not None and not 0 <= self.preferred < k:
            raise ValueError(f"preferred is {self.preferred}, expected an index below {k}")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(better, worse) index pairs; empty where nothing is known or all are tied."""
        return tuple(self._pairs())

    def _pairs(self) -> Iterator[tuple[int, int]]:
        k = range(len(self.candidates))
        if self.comparisons is not None:
            yield from self.comparisons
        elif self.scores is not None:
            yield from ((i, j) for i in k for j in k if self.scores[i] > self.scores[j])
        elif self.ranks is not None:
            yield from ((i, j) for i in k for j in k if self.ranks[i] < self.ranks[j])
        elif self.preferred is not None:
            yield from ((self.preferred, j) for j in k if j != self.preferred)
        elif self.labels is not None:
            yield from ((i, j) for i in k for j in k if self.labels[i] and not self.labels[j])


def as_messages(group: PreferenceGroup) -> PreferenceGroup:
    """The group with plain texts as messages: its prompt a user's, its candidates the assistant's.

    An empty prompt has no message.
    """
    prompt = group.prompt
    if isinstance(prompt, str):
        prompt = (Message(role="user", content=prompt),) if prompt else ()
    return replace(group, prompt=prompt, candidates=tuple(map(response_messages, group.candidates)))
