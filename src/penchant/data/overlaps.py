"""Groups in the form that the checks read: equal texts have equal numbers, and pairs are counted rather than listed.

A group of K candidates has up to K (K - 1) / 2 pairs. They are listed one group at a time, and only for groups whose
pairs may occur in other groups.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple

from penchant.data.check_report import Hits
from penchant.data.groups import PreferenceGroup, Text, as_text

SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):", re.MULTILINE)
Turn = tuple[str, str]


def normalized(text: str) -> str:
    """The text with case folded and every run of white space as one space."""
    return " ".join(text.split()).casefold()


def turns_of(prompt: Text) -> list[Turn]:
    """(role, text) of every turn; plain text is one turn of the user, unless it is a Human/Assistant transcript."""
    if not isinstance(prompt, str):
        return [(message["role"], _comparable_text(message)) for message in prompt]
    if not prompt.lstrip().startswith("Human:"):
        return [("user", prompt)]
    parts = SPEAKER.split(prompt)[1:]
    turns = [
        ("user" if speaker == "Human" else "assistant", text)
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    # A transcript ends with an empty turn of the assistant.
    return turns[:-1] if turns and not turns[-1][1].strip() else turns


def _comparable_text(message: Mapping[str, Any]) -> str:
    """A message's text; all its fields except the role as JSON where it has more than text."""
    fields = {key: value for key, value in message.items() if key != "role" and value is not None}
    content = fields.get("content")
    return content if isinstance(content, str) and len(fields) == 1 else json.dumps(fields, sort_keys=True, default=str)


def first_user_turn(prompt: Text) -> str:
    """Normalized text of the first user turn; of the whole prompt where there is no user turn."""
    turns = turns_of(prompt)
    return normalized(next((text for role, text in turns if role == "user"), " ".join(text for _, text in turns)))


def prefix_digests(prompt: Text) -> list[bytes]:
    """Digests of the prompt's first turn, its first two turns, and so on to all turns, of the normalized texts."""
    digest, digests = blake2b(digest_size=16), []
    for role, text in turns_of(prompt):
        part = f"{role}:{normalized(text)}".encode(errors="surrogatepass")
        digest.update(len(part).to_bytes(8, "little") + part)
        digests.append(digest.digest())
    return digests


def overlapping_prompts(prompts: Sequence[Sequence[bytes]], other_prompts: Sequence[Sequence[bytes]]) -> Iterator[int]:
    """Indices of the prompts that continue another prompt, or are continued by one; equal prompts do not count.

    Args:
        prompts: `prefix_digests` of each prompt.
        other_prompts: `prefix_digests` of the prompts to compare with.
    """
    complete = {digests[-1] for digests in other_prompts if digests}
    incomplete = {digest for digests in other_prompts for digest in digests[:-1]}
    for number, digests in enumerate(prompts):
        if digests and (digests[-1] in incomplete or not complete.isdisjoint(digests[:-1])):
            yield number


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
