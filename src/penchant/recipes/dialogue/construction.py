"""Preference pairs from rated answers or from two styles of an answer, filtered for facts and safety."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from penchant.api import PreferenceGroup, as_text
from penchant.recipes.dialogue.human_centric import is_crisis, refers, unsupported
from penchant.recipes.dialogue.rewriting import AnswerRecord, Rewriter


@dataclass(frozen=True)
class Filters:
    """Rules that drop pairs.

    Attributes:
        least_margin: minimum difference between the ratings of the better and the worse answer.
        per_question: maximum pairs of a question, those with the widest margins are kept; None keeps all.
        most_words: maximum words of an answer; None sets no limit.
        crisis_needs_referral: the better answer to a question about suicide or self-harm must name help.
        most_unsupported: maximum numbers and names in the better answer that its source does not contain.
    """

    least_margin: float = 1.0
    per_question: int | None = None
    most_words: int | None = None
    crisis_needs_referral: bool = True
    most_unsupported: int = 0


@dataclass(frozen=True)
class Pair:
    """A better and a worse answer; `margin` is the difference of their ratings, 0 without ratings."""

    better: AnswerRecord
    worse: AnswerRecord
    margin: float = 0.0


def from_ratings(answers: Sequence[AnswerRecord], filters: Filters, dropped: Counter[str]) -> list[Pair]:
    """All pairs of answers to the same question whose ratings differ enough.

    Args:
        dropped: counts of dropped pairs by reason, updated in place.
    """
    by_question: dict[str, list[AnswerRecord]] = defaultdict(list)
    for answer in answers:
        by_question[answer.question].append(answer)
    all_pairs: list[Pair] = []
    for candidates in by_question.values():
        rated_pairs = [
            Pair(better, worse, better.rating - worse.rating)
            for better in candidates
            for worse in candidates
            if better.rating is not None and worse.rating is not None
            if better.rating - worse.rating >= filters.least_margin and better.rating > worse.rating
        ]
        dropped["ratings too close"] += len(candidates) * (len(candidates) - 1) // 2 - len(rated_pairs)
        pairs = [pair for pair in rated_pairs if not _is_dropped(pair, filters, dropped)]
        pairs.sort(key=lambda pair: -pair.margin)
        if filters.per_question is not None:
            dropped["more pairs than one question may have"] += max(0, len(pairs) - filters.per_question)
            pairs = pairs[: filters.per_question]
        all_pairs += pairs
    return all_pairs


def from_styles(
    answers: Sequence[AnswerRecord], rewrite: Rewriter, filters: Filters, dropped: Counter[str]
) -> list[Pair]:
    """A pair for every answer: its supportive rewriting is better than its prescriptive one.

    Args:
        dropped: counts of dropped pairs by reason, updated in place.
    """
    pairs = []
    for answer, styled in zip(answers, rewrite(answers), strict=True):
        if styled is None:
            dropped["it could not be rewritten"] += 1
            continue
        # Neither rewriting may add facts to the question and the answer.
        source = f"{answer.question}\n{answer.answer}" if answer.source is None else answer.source
        better, worse = (AnswerRecord(answer.question, text, None, source, answer.topic) for text in styled)
        pair = Pair(better, worse)
        if not _is_dropped(pair, filters, dropped):
            pairs.append(pair)
    return pairs


def for_review(groups: Sequence[PreferenceGroup], count: int) -> list[PreferenceGroup]:
    """The `count` groups that people should review: crises first, then the narrowest margins."""

    def margin(group: PreferenceGroup) -> float:
        return group.scores[0] - group.scores[1] if group.scores is not None else 0.0

    return sorted(groups, key=lambda group: (not is_crisis(as_text(group.prompt)), margin(group)))[:count]


def _is_dropped(pair: Pair, filters: Filters, dropped: Counter[str]) -> bool:
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
