"""Groups in the form the checks read: equal texts are equal numbers, and pairs are rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from penchant.data.check_report import Hits
from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.overlaps import beginnings, folded

_EXAMPLES = 5


class Pair(NamedTuple):
    """One preference: the number of its group, and of its three texts."""

    group: int
    prompt: int
    chosen: int
    rejected: int


@dataclass(frozen=True)
class Corpus:
    """Groups, numbered.

    Attributes:
        texts: the distinct texts of prompts and candidates; the other fields hold indices into it.
        prompts: one for each group.
        candidates: K for each group.
        preferences: for each group, its (better, worse) candidate indices.
        pairs: all groups' preferences as texts.
    """

    groups: Sequence[PreferenceGroup]
    texts: tuple[str, ...]
    prompts: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    preferences: tuple[tuple[tuple[int, int], ...], ...]
    pairs: tuple[Pair, ...]

    @classmethod
    def of(cls, groups: Sequence[PreferenceGroup]) -> Corpus:
        numbers: dict[str, int] = {}

        def number(text: str) -> int:
            return numbers.setdefault(text, len(numbers))

        prompts = tuple(number(as_text(group.prompt)) for group in groups)
        candidates = tuple(tuple(number(as_text(c)) for c in group.candidates) for group in groups)
        preferences = tuple(group.pairs for group in groups)
        pairs = tuple(_pairs(prompts, candidates, preferences))
        return cls(groups, tuple(numbers), prompts, candidates, preferences, pairs)

    @cached_property
    def folded_texts(self) -> tuple[str, ...]:
        """`texts` without case and extra white space."""
        return tuple(map(folded, self.texts))

    @cached_property
    def prompt_beginnings(self) -> tuple[list[bytes], ...]:
        """`beginnings` of each group's prompt."""
        return tuple(beginnings(group.prompt) for group in self.groups)

    def hits(self, found: Iterable[int], of: int) -> Hits:
        """A check's hits, from the number of the group of each."""
        numbers = list(found)
        first: dict[str, None] = {}
        for number in numbers:
            first[self.groups[number].id] = None
            if len(first) == _EXAMPLES:
                break
        return Hits(len(numbers), of, tuple(first))


def _pairs(
    prompts: Sequence[int], candidates: Sequence[Sequence[int]], preferences: Sequence[Sequence[tuple[int, int]]]
) -> Iterator[Pair]:
    for group, (prompt, texts, known) in enumerate(zip(prompts, candidates, preferences, strict=True)):
        for better, worse in known:
            yield Pair(group, prompt, texts[better], texts[worse])
