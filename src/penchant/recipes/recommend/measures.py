"""How well titles are ranked and named: hit ratio, NDCG, MRR by scores; hit ratio and valid ratio by what is said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from penchant.evaluation.one_preferred import TargetRank
from penchant.evaluation.statistics import Estimate, bootstrap_mean


def ranking_measures(ranks: Sequence[TargetRank], users: Sequence[str], cutoffs: Sequence[int]) -> dict[str, Estimate]:
    """Means over questions, with intervals over users.

    Args:
        ranks, users: one of each for every question.
        cutoffs: the k of hit ratio and NDCG.
    """
    values = {f"hit_ratio@{k}": [rank.hit(k) for rank in ranks] for k in cutoffs}
    values |= {f"ndcg@{k}": [rank.ndcg(k) for rank in ranks] for k in cutoffs if k > 1}
    values["mrr"] = [rank.reciprocal() for rank in ranks]
    return {name: over_users(each, users) for name, each in values.items()}


def over_users(values: Sequence[float], users: Sequence[str]) -> Estimate:
    """The mean over questions, with an interval over users."""
    numbers: Mapping[str, int] = {user: i for i, user in enumerate(dict.fromkeys(users))}
    return bootstrap_mean(np.array(values, dtype=np.float64), np.array([numbers[user] for user in users]))


def named(answer: str, titles: Sequence[str]) -> tuple[int, ...]:
    """Which titles an answer names, on word boundaries; of titles that contain one another, the longest.

    An answer is valid where it names exactly one.
    """
    left, found = answer, []
    for index in sorted(range(len(titles)), key=lambda i: -len(titles[i])):
        pattern = rf"(?<!\w){re.escape(titles[index].strip())}(?!\w)"
        left, times = re.subn(pattern, "\0", left, flags=re.IGNORECASE)
        if times:
            found.append(index)
    return tuple(sorted(found))


def said_measures(
    answers: Sequence[str], offered: Sequence[Sequence[str]], targets: Sequence[int], users: Sequence[str]
) -> dict[str, Estimate]:
    """Hit ratio at 1 of greedy answers (valid and right, over all) and the share that is valid, as the authors count.

    Args:
        answers, offered, targets, users: of each question, what was said, the titles, the target's index, whose it is.
    """
    choices = [named(answer, titles) for answer, titles in zip(answers, offered, strict=True)]
    hits = [float(choice == (target,)) for choice, target in zip(choices, targets, strict=True)]
    valid = [float(len(choice) == 1) for choice in choices]
    return {"said_hit_ratio@1": over_users(hits, users), "valid_ratio": over_users(valid, users)}
