"""Metrics: hit ratio, NDCG and MRR of rankings by score; hit ratio and valid ratio of answers in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from penchant.evaluation.one_preferred import TargetRank
from penchant.evaluation.statistics import Estimate, bootstrap_mean


def ranking_metrics(ranks: Sequence[TargetRank], users: Sequence[str], cutoffs: Sequence[int]) -> dict[str, Estimate]:
    """Hit ratio, NDCG and MRR: means over questions with intervals over users.

    Args:
        ranks: the target's rank for every question.
        users: the user of every question.
        cutoffs: the k of hit ratio and NDCG.
    """
    values = {f"hit_ratio@{k}": [rank.hit(k) for rank in ranks] for k in cutoffs}
    values |= {f"ndcg@{k}": [rank.ndcg(k) for rank in ranks] for k in cutoffs if k > 1}
    values["mrr"] = [rank.reciprocal() for rank in ranks]
    return {name: mean_over_users(values_of_metric, users) for name, values_of_metric in values.items()}


def mean_over_users(values: Sequence[float], users: Sequence[str]) -> Estimate:
    """The mean over questions with an interval over users."""
    numbers: Mapping[str, int] = {user: i for i, user in enumerate(dict.fromkeys(users))}
    return bootstrap_mean(np.array(values, dtype=np.float64), np.array([numbers[user] for user in users]))


def named_titles(answer: str, titles: Sequence[str]) -> tuple[int, ...]:
    """The indices of the titles that an answer names on word boundaries; of nested titles only the longest counts.

    An answer is valid if it names exactly one title.
    """
    remaining, indices = answer, []
    for index in sorted(range(len(titles)), key=lambda i: -len(titles[i])):
        pattern = rf"(?<!\w){re.escape(titles[index].strip())}(?!\w)"
        remaining, times = re.subn(pattern, "\0", remaining, flags=re.IGNORECASE)
        if times:
            indices.append(index)
    return tuple(sorted(indices))


def answer_metrics(
    answers: Sequence[str], candidates: Sequence[Sequence[str]], targets: Sequence[int], users: Sequence[str]
) -> dict[str, Estimate]:
    """Hit ratio at 1 of greedy answers (valid and right ones, over all) and the share of valid ones, as in the paper.

    Args:
        answers: the answer to every question.
        candidates: the titles that every question lists.
        targets: the index of every question's target among its titles.
        users: the user of every question.
    """
    choices = [named_titles(answer, titles) for answer, titles in zip(answers, candidates, strict=True)]
    hits = [float(choice == (target,)) for choice, target in zip(choices, targets, strict=True)]
    valid = [float(len(choice) == 1) for choice in choices]
    return {"said_hit_ratio@1": mean_over_users(hits, users), "valid_ratio": mean_over_users(valid, users)}
