"""A preference group: one prompt, its K candidate responses, and the preferences among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from penchant.data.messages import Message, Text, as_text, response_messages

__all__ = ["Message", "PreferenceGroup", "Text", "as_messages", "as_text"]


@dataclass(frozen=True)
class PreferenceGroup:
    """One prompt and its K >= 1 candidates.

    Preferences are in any of five fields, `comparisons` to `labels`; `pairs` derives (better, worse) pairs from the
    first of them, in the order below, that is not None.

    Attributes:
        prompt: text, or the messages before the response; a `Conversation` where the group has tools, documents or
            template variables.
        candidates: K responses, each text or messages (most often one assistant message).
        comparisons: explicit (better, worse) index pairs; a pair that is absent is a tie or was not compared.
        scores: K numbers, higher is better; equal scores are a tie.
        ranks: K ranks, 1 is the best; equal ranks are a tie.
        preferred: index of the one candidate preferred to all the others.
        labels: K yes/no labels (unpaired data: K = 1).
        id: the row's id, or its 0-based number where the data has no ids.
        weight: weight of the group in the loss, > 0.
        source: origin of the group, for breakdowns; None where the data does not name it.
        mismatched: index of a candidate that answers another prompt (see `data.mismatch`) and has no preference.
        extra: values of the row's columns that its format does not read, by the source's column names.
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
        """(better, worse) index pairs; empty where there is no preference or all candidates are tied."""
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
    """The group with a plain prompt as a user's message, and plain candidates as the assistant's.

    An empty prompt becomes an empty list of messages.
    """
    prompt = group.prompt
    if isinstance(prompt, str):
        prompt = (Message(role="user", content=prompt),) if prompt else ()
    return replace(group, prompt=prompt, candidates=tuple(map(response_messages, group.candidates)))
