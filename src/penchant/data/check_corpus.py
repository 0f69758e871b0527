"""Groups in the form that the checks read: equal texts have equal numbers, and pairs are counted rather than listed.

A group of K candidates has up to K (K - 1) / 2 pairs. They are listed one group at a time, and only for groups whose
pairs may occur in other groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from penchant.data.check_report import Hits
from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.overlaps import normalized, prefix_digests

_EXAMPLES = 5


class Pair(NamedTuple):
    """One preference: the number of its group, and the numbers of its three texts."""

    group: int
    prompt: int
    chosen: int
    rejected: int


@dataclass(frozen=True)
class Corpus:
    """Groups with numbered texts.

    Attributes:
        groups: the groups, in order.
        texts: the distinct texts of prompts and candidates; `prompts` and `candidates` hold indices into it.
        prompts: number of each group's prompt.
        candidates: numbers of each group's K candidates.
        pair_counts: number of (better, worse) candidate pairs of each group.
    """

    groups: Sequence[PreferenceGroup]
    texts: tuple[str, ...]
    prompts: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    pair_counts: tuple[int, ...]

    @classmethod
    def from_groups(cls, groups: Sequence[PreferenceGroup]) -> Corpus:
        """The corpus of these groups."""
        numbers: dict[str, int] = {}

        def number(text: str) -> int:
            return numbers.setdefault(text, len(numbers))

        prompts = tuple(number(as_text(group.prompt)) for group in groups)
        candidates = tuple(tuple(number(as_text(c)) for c in group.candidates) for group in groups)
        return cls(groups, tuple(numbers), prompts, candidates, tuple(map(count_pairs, groups)))

    @cached_property
    def folded_texts(self) -> tuple[str, ...]:
        """[T] `texts` without case and extra white space."""
        return tuple(map(normalized, self.texts))

    @cached_property
    def prompt_prefixes(self) -> tuple[list[bytes], ...]:
        """`prefix_digests` of each group's prompt."""
        return tuple(prefix_digests(group.prompt) for group in self.groups)

    def hits(self, group_numbers: Iterable[int], total: int) -> Hits:
        """The hits of a check.

        Args:
            group_numbers: number of the group of every hit.
            total: number of things that the check looked at.
        """
        return self.hits_by_group(Counter(group_numbers), total)

    def hits_by_group(self, counts: Mapping[int, int], total: int) -> Hits:
        """The hits of a check, with the first groups of the mapping as examples.

        Args:
            counts: number of hits of each group.
            total: number of things that the check looked at.
        """
        example_ids: dict[str, None] = {}
        for number in counts:
            example_ids[self.groups[number].id] = None
            if len(example_ids) == _EXAMPLES:
                break
        return Hits(sum(counts.values()), total, tuple(example_ids))

    def overlapping_pairs(self) -> Iterator[Pair]:
        """The pairs that another pair may repeat or contradict.

        Left out are the pairs of a group that is the only one of its prompt, contains no text twice, and orders its
        candidates by numbers.
        """
        groups_of_prompt = Counter(self.prompts)
        for number, (group, prompt, texts) in enumerate(zip(self.groups, self.prompts, self.candidates, strict=True)):
            if groups_of_prompt[prompt] > 1 or group.comparisons is not None or len(set(texts)) < len(texts):
                for better, worse in group.pairs:
                    yield Pair(number, prompt, texts[better], texts[worse])


def preference_key(group: PreferenceGroup) -> object:
    """A key that is equal for two groups of K candidates with the same preferences among them."""
    if group.comparisons is not None:
        return group.comparisons
    values = candidate_values(group)
    ranks = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return tuple(ranks[value] for value in values)


def count_pairs(group: PreferenceGroup) -> int:
    """Number of (better, worse) pairs in `group.pairs`."""
    if group.comparisons is not None:
        return len(group.comparisons)
    k = len(group.candidates)
    return (k * k - sum(count * count for count in Counter(candidate_values(group)).values())) // 2


def candidate_values(group: PreferenceGroup) -> Sequence[float]:
    """[K] numbers, higher is preferred, for a group without explicit comparisons."""
    if group.scores is not None:
        return group.scores
    if group.ranks is not None:
        return [-rank for rank in group.ranks]
    if group.preferred is not None:
        return [float(index == group.preferred) for index in range(len(group.candidates))]
    return group.labels or [0.0] * len(group.candidates)
