"""Preferences over answers to people's questions: from votes, and past filters of fact and safety."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from penchant.data.groups import PreferenceGroup, as_text
from penchant.errors import DataError
from penchant.evaluation.human_centric import is_crisis, refers, unsupported


@dataclass(frozen=True)
class Answered:
    """One answer to a question, and how many found it helpful.

    Attributes:
        source: what the answer must not go beyond, where there is such a text.
    """

    question: str
    answer: str
    votes: float
    source: str | None = None


@dataclass(frozen=True)
class Filters:
    """Which pairs are left out.

    Attributes:
        least_margin: votes between the better and the worse answer.
        per_question: pairs of one question at most, those of the widest margin; None keeps all.
        crisis_needs_referral: in a question that speaks of suicide or self-harm, a better answer must name help.
        most_unsupported: numbers and names in a better answer that its source does not hold.
    """

    least_margin: float = 1.0
    per_question: int | None = None
    crisis_needs_referral: bool = True
    most_unsupported: int = 0


def from_votes(answers: Sequence[Answered], filters: Filters) -> tuple[list[PreferenceGroup], dict[str, int]]:
    """One group for each pair of answers to a question that differ enough in votes; and what was left out, counted.

    Raises:
        DataError: no pair is left.
    """
    by_question: dict[str, list[Answered]] = defaultdict(list)
    for each in answers:
        by_question[each.question].append(each)
    dropped: Counter[str] = Counter()
    groups: list[PreferenceGroup] = []
    for number, (question, given) in enumerate(by_question.items()):
        pairs = [
            (better, worse)
            for better in given
            for worse in given
            if better.votes - worse.votes >= filters.least_margin and better.votes > worse.votes
        ]
        compared = len(given) * (len(given) - 1) // 2
        dropped["votes too close"] += compared - len(pairs)
        kept = [pair for pair in pairs if not _refused(question, pair, filters, dropped)]
        kept.sort(key=lambda pair: pair[1].votes - pair[0].votes)
        if filters.per_question is not None:
            dropped["more pairs than one question may have"] += max(0, len(kept) - filters.per_question)
            kept = kept[: filters.per_question]
        groups += [_group(f"{number}-{n}", *pair) for n, pair in enumerate(kept)]
    if not groups:
        told = ", ".join(f"{count} {why}" for why, count in dropped.items() if count) or "there are no two answers"
        raise DataError(f"no pair is left: {told}", fix="take more data, or loosen the filters")
    return groups, {why: count for why, count in dropped.items() if count}


def for_review(groups: Sequence[PreferenceGroup], most: int) -> list[PreferenceGroup]:
    """Those a person should read first, at most so many: crises, then the narrowest margins."""

    def margin(group: PreferenceGroup) -> float:
        return group.scores[0] - group.scores[1] if group.scores is not None else 0.0

    return sorted(groups, key=lambda group: (not is_crisis(as_text(group.prompt)), margin(group)))[:most]


def _refused(question: str, pair: tuple[Answered, Answered], filters: Filters, dropped: Counter[str]) -> bool:
    better, worse = pair
    if " ".join(better.answer.split()) == " ".join(worse.answer.split()):
        dropped["the two answers are one"] += 1
    elif filters.crisis_needs_referral and is_crisis(question) and not refers(better.answer):
        dropped["a crisis, and the better answer names no help"] += 1
    elif better.source is not None and len(unsupported(better.answer, better.source)) > filters.most_unsupported:
        dropped["the better answer goes beyond its source"] += 1
    else:
        return False
    return True


def _group(name: str, better: Answered, worse: Answered) -> PreferenceGroup:
    return PreferenceGroup(better.question, (better.answer, worse.answer), scores=(better.votes, worse.votes), id=name)
