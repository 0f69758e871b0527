"""Topics in training, validation and test: none is parted, whichever sources speak of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set

from penchant.data.groups import PreferenceGroup
from penchant.data.splitting import split_by_prompt
from penchant.errors import DataError

PARTS = ("train", "validation", "test")


def topics_of(asked: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Each question's topic, itself where it has none; topics that share a question are one."""
    joined: dict[str, str] = {}

    def first(topic: str) -> str:
        while joined.setdefault(topic, topic) != topic:
            topic = joined[topic]
        return topic

    found: dict[str, str] = {}
    for question, named in asked:
        topic = named or question
        one, other = sorted((first(topic), first(found.setdefault(question, topic))))
        joined[other] = one
    return {question: first(topic) for question, topic in found.items()}


def parts_of(topics: Mapping[str, Set[str]], files: Mapping[str, str], held_out: float, seed: int) -> dict[str, str]:
    """The part of each topic.

    Topics of the same sources are parted among themselves, so that every source has its share of each part; where they
    are too few for that, they are trained on.

    Args:
        topics, files: of each source.
        held_out: share of topics for the test, and for validation.

    Raises:
        DataError: a source would have nothing in a part.
    """
    together: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for topic in sorted(set().union(*topics.values())):
        together[tuple(name for name, own in topics.items() if topic in own)].append(topic)
    found: dict[str, str] = {}
    for those in together.values():
        rest, test = _two(those, held_out, seed)
        train, validation = _two(rest, held_out / (1 - held_out), seed)
        found |= {topic: part for part, each in zip(PARTS, (train, validation, test), strict=True) for topic in each}
    for name, own in topics.items():
        lacking = [part for part in PARTS if part not in {found[topic] for topic in own}]
        if lacking:
            raise DataError(
                f"{len(own)} topics leave nothing for {' and '.join(lacking)}",
                where=files[name],
                fix="give more topics (a question without one is its own), fewer that other sources share, or another "
                "held_out",
            )
    return found


def _two(topics: Sequence[str], held_out: float, seed: int) -> tuple[list[str], list[str]]:
    try:
        sides = split_by_prompt([PreferenceGroup(topic, ("",)) for topic in topics], held_out=held_out, seed=seed)
    except DataError:
        return list(topics), []
    rest, out = ([str(group.prompt) for group in side] for side in sides)
    return rest, out
