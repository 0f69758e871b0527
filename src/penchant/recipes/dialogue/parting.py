"""Assignment of topics to training, validation and test; a topic is in one part only, also if sources share it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set

from penchant.data.groups import PreferenceGroup
from penchant.data.splitting import split_by_prompt
from penchant.errors import DataError

PARTS = ("train", "validation", "test")


def merge_topics(questions: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """The topic of every question, the question itself where it has none; topics that share a question are merged."""
    parents: dict[str, str] = {}

    def root(topic: str) -> str:
        while parents.setdefault(topic, topic) != topic:
            topic = parents[topic]
        return topic

    topic_of: dict[str, str] = {}
    for question, topic_name in questions:
        topic = topic_name or question
        one, other = sorted((root(topic), root(topic_of.setdefault(question, topic))))
        parents[other] = one
    return {question: root(topic) for question, topic in topic_of.items()}


def assign_parts(
    topics: Mapping[str, Set[str]], files: Mapping[str, str], held_out: float, seed: int
) -> dict[str, str]:
    """The part ("train", "validation" or "test") of every topic.

    Topics of the same set of sources are split among themselves, so that every source has its share of each part;
    where they are too few to split, they are all in training.

    Args:
        topics: topics by source.
        files: file names by source, for error messages.
        held_out: share of topics for the test, and again for validation.

    Raises:
        DataError: a source would have no topic in a part.
    """
    by_sources: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for topic in sorted(set().union(*topics.values())):
        by_sources[tuple(name for name, source_topics in topics.items() if topic in source_topics)].append(topic)
    part_of: dict[str, str] = {}
    for shared_topics in by_sources.values():
        remaining, test = _split(shared_topics, held_out, seed)
        train, validation = _split(remaining, held_out / (1 - held_out), seed)
        part_of |= {
            topic: part for part, members in zip(PARTS, (train, validation, test), strict=True) for topic in members
        }
    for name, source_topics in topics.items():
        lacking = [part for part in PARTS if part not in {part_of[topic] for topic in source_topics}]
        if lacking:
            raise DataError(
                f"{len(source_topics)} topics leave nothing for {' and '.join(lacking)}",
                where=files[name],
                fix="give more topics (a question without one is its own), fewer that other sources share, or another "
                "held_out",
            )
    return part_of


def _split(topics: Sequence[str], held_out: float, seed: int) -> tuple[list[str], list[str]]:
    try:
        sides = split_by_prompt([PreferenceGroup(topic, ("",)) for topic in topics], held_out=held_out, seed=seed)
    except DataError:
        return list(topics), []
    remaining, out = ([str(group.prompt) for group in side] for side in sides)
    return remaining, out
