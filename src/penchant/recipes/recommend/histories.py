"""From interactions to questions: what a user had taken before a moment, and what they took then.

Nothing looks ahead. A history holds what lies strictly before its target in time, questions are split by time and not
by user, and the catalogue is of items that were taken often enough in the training part alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from penchant.data.interactions import Interaction
from penchant.errors import DataError


@dataclass(frozen=True)
class Rules:
    """What becomes a question.

    Attributes:
        min_rating: interactions rated less, or not at all, are left out; None takes all.
        min_count: of an item's interactions in the training part; rarer ones are in no catalogue.
        min_history, max_history: items of a history; of a longer one the last are kept.
        shares: of questions in training, validation and test, by time.
    """

    min_rating: float | None = None
    min_count: int = 5
    min_history: int = 3
    max_history: int = 10
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)


@dataclass(frozen=True)
class Question:
    """What does this user take next?

    Attributes:
        number: of the user's questions, counted from 0 in the order of time.
        history: items taken before, the oldest first.
        target: the item taken.
    """

    user: str
    number: int
    history: tuple[str, ...]
    target: str
    time: float

    @property
    def id(self) -> str:
        return f"{self.user}/{self.number}"


@dataclass(frozen=True)
class Histories:
    """Questions by part, and what they were made of.

    Attributes:
        items: the catalogue, in the order of first appearance.
        counts: interactions of each item of the catalogue in the training part.
        taken: by user, each item of the catalogue they took with the time.
        dropped: what was left out, counted.
    """

    train: tuple[Question, ...]
    validation: tuple[Question, ...]
    test: tuple[Question, ...]
    items: tuple[str, ...]
    counts: Mapping[str, int]
    taken: Mapping[str, Mapping[str, float]]
    dropped: Mapping[str, int] = field(default_factory=dict)


def build_histories(interactions: Sequence[Interaction], titles: Mapping[str, str], rules: Rules) -> Histories:
    """Split by time, then make the catalogue of the training part, then the questions.

    Raises:
        DataError: an item that is liked has no title, or a part would be empty.
    """
    dropped: Counter[str] = Counter()
    liked = _liked(interactions, rules.min_rating, dropped)
    untitled = [each.item for each in liked if each.item not in titles]
    if untitled:
        raise DataError(
            f"{len(set(untitled))} items have no title, the first is '{untitled[0]}'",
            fix="add their titles, or leave their interactions out",
        )
    train_end, validation_end = _boundaries(liked, rules.shares)
    counts = Counter(each.item for each in liked if each.time < train_end)
    items = tuple(dict.fromkeys(each.item for each in liked if counts[each.item] >= rules.min_count))
    catalogue = set(items)
    dropped["interactions with items too rare in training"] = sum(each.item not in catalogue for each in liked)
    taken: dict[str, dict[str, float]] = defaultdict(dict)
    for each in liked:
        if each.item in catalogue:
            taken[each.user][each.item] = each.time
    questions = [q for user, times in taken.items() for q in _questions(user, times, rules, dropped)]
    questions.sort(key=lambda question: (question.time, question.user, question.number))
    parts = {
        "training": tuple(q for q in questions if q.time < train_end),
        "validation": tuple(q for q in questions if train_end <= q.time < validation_end),
        "test": tuple(q for q in questions if q.time >= validation_end),
    }
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise DataError(
            f"no questions for {' and '.join(empty)}: of {len(liked)} interactions none has {rules.min_history} items "
            f"before it among the {len(items)} taken {rules.min_count} times in training",
            fix="lower min_history, min_count or min_rating, or take more data",
        )
    return Histories(
        parts["training"],
        parts["validation"],
        parts["test"],
        items,
        {item: counts[item] for item in items},
        taken,
        dict(dropped),
    )


def _liked(interactions: Sequence[Interaction], min_rating: float | None, dropped: Counter[str]) -> list[Interaction]:
    """By time; each user's first with each item."""
    liked: dict[tuple[str, str], Interaction] = {}
    for each in sorted(interactions, key=lambda each: (each.time, each.user, each.item)):
        if min_rating is not None and (each.rating is None or each.rating < min_rating):
            dropped["interactions rated too low"] += 1
        elif liked.setdefault((each.user, each.item), each) is not each:
            dropped["repeated interactions"] += 1
    return list(liked.values())


def _boundaries(liked: Sequence[Interaction], shares: tuple[float, float, float]) -> tuple[float, float]:
    """Times at which validation and test begin: what happened at one moment stays in one part."""
    if not liked:
        raise DataError("no interaction is left", fix="lower min_rating")
    whole, done, found = sum(shares), 0.0, []
    for share in shares[:2]:
        done += share / whole
        found.append(liked[min(len(liked) - 1, int(done * len(liked)))].time)
    return found[0], found[1]


def _questions(user: str, times: Mapping[str, float], rules: Rules, dropped: Counter[str]) -> list[Question]:
    found: list[Question] = []
    ordered = sorted(times.items(), key=lambda pair: (pair[1], pair[0]))
    for target, time in ordered:
        before = [item for item, when in ordered if when < time]
        if len(before) < rules.min_history:
            dropped["interactions with too short a history"] += 1
            continue
        found.append(Question(user, len(found), tuple(before[-rules.max_history :]), target, time))
    return found
