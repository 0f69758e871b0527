"""Questions made of interactions: the items that a user had taken before a time, and the item taken then.

No information comes from the future. A history holds only items taken strictly before its target, questions are split
by time and not by user, and the catalogue holds the items that were taken often enough in the training part.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from penchant.data.interactions import Interaction
from penchant.errors import DataError


@dataclass(frozen=True)
class Rules:
    """The rules of making questions.

    Attributes:
        min_rating: interactions with a lower rating or without one are left out; None leaves out none.
        min_count: the interactions in the training part that an item of the catalogue needs.
        min_history: the number of items that a history needs.
        max_history: the number of items in a history, at most; the last ones are kept.
        shares: the shares of interactions in training, validation and test, by time.
    """

    min_rating: float | None = None
    min_count: int = 5
    min_history: int = 3
    max_history: int = 10
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)


@dataclass(frozen=True)
class Question:
    """The question which item a user takes next.

    Attributes:
        number: the index of the question among the user's questions, by time.
        history: the items taken before, the oldest first.
        target: the item that the user took.
        time: the time of the target's interaction.
    """

    user: str
    number: int
    history: tuple[str, ...]
    target: str
    time: float

    @property
    def id(self) -> str:
        """The user and the question's number."""
        return f"{self.user}/{self.number}"


@dataclass(frozen=True)
class Histories:
    """Questions by part, and the data that they were made of.

    Attributes:
        items: the catalogue, in the order of first appearance.
        counts: the number of interactions in the training part by item of the catalogue.
        times_by_user: by user, the time at which they took an item, by item of the catalogue.
        dropped: the number of interactions that were left out, by reason.
    """

    train: tuple[Question, ...]
    validation: tuple[Question, ...]
    test: tuple[Question, ...]
    items: tuple[str, ...]
    counts: Mapping[str, int]
    times_by_user: Mapping[str, Mapping[str, float]]
    dropped: Mapping[str, int] = field(default_factory=dict)


def build_histories(interactions: Sequence[Interaction], titles: Mapping[str, str], rules: Rules) -> Histories:
    """The questions of interactions: a split by time, the catalogue of the training part, and a question per target.

    Raises:
        DataError: an item with a sufficient rating has no title, or a part would be empty.
    """
    dropped: Counter[str] = Counter()
    liked = _liked(interactions, rules.min_rating, dropped)
    untitled = [interaction.item for interaction in liked if interaction.item not in titles]
    if untitled:
        raise DataError(
            f"{len(set(untitled))} items have no title, the first is '{untitled[0]}'",
            fix="add their titles, or leave their interactions out",
        )
    train_end, validation_end = _boundaries(liked, rules.shares)
    counts = Counter(interaction.item for interaction in liked if interaction.time < train_end)
    items = tuple(
        dict.fromkeys(interaction.item for interaction in liked if counts[interaction.item] >= rules.min_count)
    )
    catalogue = set(items)
    dropped["interactions with items too rare in training"] = sum(
        interaction.item not in catalogue for interaction in liked
    )
    times_by_user: dict[str, dict[str, float]] = defaultdict(dict)
    for interaction in liked:
        if interaction.item in catalogue:
            times_by_user[interaction.user][interaction.item] = interaction.time
    questions = [q for user, times in times_by_user.items() for q in _questions(user, times, rules, dropped)]
    questions.sort(key=lambda question: (question.time, question.user, question.number))
    parts = {
        "training": tuple(q for q in questions if q.time < train_end),
        "validation": tuple(q for q in questions if train_end <= q.time < validation_end),
        "test": tuple(q for q in questions if q.time >= validation_end),
    }
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise DataError(
            f"no questions for {' and '.join(empty)}: none of {len(liked)} interactions has {rules.min_history} items "
            f"before it among the {len(items)} items taken {rules.min_count} times in training",
            fix="lower min_history, min_count or min_rating, or take more data",
        )
    return Histories(
        parts["training"],
        parts["validation"],
        parts["test"],
        items,
        {item: counts[item] for item in items},
        times_by_user,
        dict(dropped),
    )


def _liked(interactions: Sequence[Interaction], min_rating: float | None, dropped: Counter[str]) -> list[Interaction]:
    """The interactions with a sufficient rating, by time; a user's repeated interactions with an item are dropped."""
    liked: dict[tuple[str, str], Interaction] = {}
    for interaction in sorted(
        interactions, key=lambda interaction: (interaction.time, interaction.user, interaction.item)
    ):
        if min_rating is not None and (interaction.rating is None or interaction.rating < min_rating):
            dropped["interactions rated too low"] += 1
        elif liked.setdefault((interaction.user, interaction.item), interaction) is not interaction:
            dropped["repeated interactions"] += 1
    return list(liked.values())


def _boundaries(liked: Sequence[Interaction], shares: tuple[float, float, float]) -> tuple[float, float]:
    """The times at which validation and test begin; interactions of the same time are in the same part."""
    if not liked:
        raise DataError("no interaction is left", fix="lower min_rating")
    whole, cumulative_share, times = sum(shares), 0.0, []
    for share in shares[:2]:
        cumulative_share += share / whole
        times.append(liked[min(len(liked) - 1, int(cumulative_share * len(liked)))].time)
    return times[0], times[1]


def _questions(user: str, times: Mapping[str, float], rules: Rules, dropped: Counter[str]) -> list[Question]:
    """The questions of a user with these times of items."""
    questions: list[Question] = []
    ordered = sorted(times.items(), key=lambda pair: (pair[1], pair[0]))
    for target, time in ordered:
        items_before = [item for item, time_of_item in ordered if time_of_item < time]
        if len(items_before) < rules.min_history:
            dropped["interactions with too short a history"] += 1
            continue
        questions.append(Question(user, len(questions), tuple(items_before[-rules.max_history :]), target, time))
    return questions
