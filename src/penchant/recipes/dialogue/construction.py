"""Preferences over answers to people's questions: from ratings and from styles, past filters of fact and safety."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from penchant.data.groups import PreferenceGroup, as_text
from penchant.evaluation.human_centric import is_crisis, refers, unsupported
from penchant.recipes.dialogue.reading import Answered
from penchant.recipes.dialogue.rewriting import Rewriter


@dataclass(frozen=True)
class Filters:
    """Which pairs are left out.

    Attributes:
        least_margin: between the ratings of the better and the worse answer.
        per_question: pairs of one question at most, those of the widest margin; None keeps all.
        most_words: in an answer; None keeps all.
        crisis_needs_referral: in a question that speaks of suicide or self-harm, a better answer must name help.
        most_unsupported: numbers and names in a better answer that its source does not hold.
    """

    least_margin: float = 1.0
    per_question: int | None = None
    most_words: int | None = None
    crisis_needs_referral: bool = True
    most_unsupported: int = 0


@dataclass(frozen=True)
class Pair:
    """A better and a worse answer; `margin` is of their ratings, 0 where they have none."""

    better: Answered
    worse: Answered
    margin: float = 0.0


def from_ratings(answers: Sequence[Answered], filters: Filters, dropped: Counter[str]) -> list[Pair]:
    """Each two answers to a question that differ enough in ratings; `dropped` counts what is left out, by why."""
    by_question: dict[str, list[Answered]] = defaultdict(list)
    for each in answers:
        by_question[each.question].append(each)
    found: list[Pair] = []
    for given in by_question.values():
        pairs = [
            Pair(better, worse, better.rating - worse.rating)
            for better in given
            for worse in given
            if better.rating is not None and worse.rating is not None
            if better.rating - worse.rating >= filters.least_margin and better.rating > worse.rating
        ]
        dropped["ratings too close"] += len(given) * (len(given) - 1) // 2 - len(pairs)
        kept = [pair for pair in pairs if not _refused(pair, filters, dropped)]
        kept.sort(key=lambda pair: -pair.margin)
        if filters.per_question is not None:
            dropped["more pairs than one question may have"] += max(0, len(kept) - filters.per_question)
            kept = kept[: filters.per_question]
        found += kept
    return found


def from_styles(answers: Sequence[Answered], rewrite: Rewriter, filters: Filters, dropped: Counter[str]) -> list[Pair]:
    """Of each answer, its supportive rewriting against its prescriptive one; `dropped` counts what is left out."""
    found = []
    for each, styled in zip(answers, rewrite(answers), strict=True):
        if styled is None:
            dropped["it could not be rewritten"] += 1
            continue
        # Neither rewriting may say more than the question and the answer did.
        source = f"{each.question}\n{each.answer}" if each.source is None else each.source
        better, worse = (Answered(each.question, text, None, source, each.topic) for text in styled)
        pair = Pair(better, worse)
        if not _refused(pair, filters, dropped):
            found.append(pair)
    return found


def for_review(groups: Sequence[PreferenceGroup], most: int) -> list[PreferenceGroup]:
    """Those a person should read first, at most so many: crises, then the narrowest margins."""

    def margin(group: PreferenceGroup) -> float:
        return group.scores[0] - group.scores[1] if group.scores is not None else 0.0

    return sorted(groups, key=lambda group: (not is_crisis(as_text(group.prompt)), margin(group)))[:most]


def _refused(pair: Pair, filters: Filters, dropped: Counter[str]) -> bool:
    better, worse = pair.better, pair.worse
    if " ".join(better.answer.split()) == " ".join(worse.answer.split()):
        dropped["the two answers are one"] += 1
    elif filters.most_words is not None and max(len(e.answer.split()) for e in (better, worse)) > filters.most_words:
        dropped[f"an answer of more than {filters.most_words} words"] += 1
    elif filters.crisis_needs_referral and is_crisis(better.question) and not refers(better.answer):
        dropped["a crisis, and the better answer names no help"] += 1
    elif better.source is not None and len(unsupported(better.answer, better.source)) > filters.most_unsupported:
        dropped["the better answer goes beyond its source"] += 1
    else:
        return False
    return True
