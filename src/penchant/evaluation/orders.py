"""Rank metrics of scores for groups of more than two candidates whose whole order is known.

Legend: O such groups, K candidates of one of them, C candidates of all groups in one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penchant.data.groups import PreferenceGroup
from penchant.evaluation.one_preferred import CHOICE_METRICS, CHOSEN_FROM
from penchant.evaluation.statistics import Estimate, Floats, Ints, bootstrap_mean, resampled_mean

KENDALL_TAU = "kendall_tau"
"""Name of the metric that may be negative, so that it is no share."""
ORDER_METRICS = {
    "top1": "share of groups where the candidate with the highest {score} is a best one (a tie with a worse is wrong)",
    "ndcg": "NDCG of the order by {score}: a candidate's gain is how many are worse, equal scores share their gains",
    KENDALL_TAU: "Kendall's tau-b of {score} and the known order, -1 to 1; 0 where all score the same",
}
"""Definition of every metric by name; each is a mean over groups."""

ORDERED = "over groups of more than 2 candidates with scores or ranks that are not all equal"


def known_worth(group: PreferenceGroup) -> Floats | None:
    """[K] numbers, higher is better; None for up to two candidates or without a known order.

    Scores beside explicit comparisons come from a reward, so they do not count.
    """
    if len(group.candidates) < 3 or group.comparisons is not None:
        return None
    if group.scores is not None:
        worth = np.array(group.scores, dtype=np.float64)
    elif group.ranks is not None:
        worth = -np.array(group.ranks, dtype=np.float64)
    else:
        return None
    return worth if worth.min() < worth.max() else None


def order_metrics(worth: Floats, scores: Floats) -> tuple[float, float, float]:
    """Top-1, NDCG and Kendall's tau-b of [K] scores against [K] worths that are not all equal.

    NDCG (Järvelin and Kekäläinen 2002) has the discount 1 / log2(1 + rank). The gain is the number of candidates that
    are worse, so that it depends on the order alone and not on the range of ranks or scores; equal
    scores get the mean gain of their ranks (McSherry and Najork 2008). Tau-b is Kendall's (1945).
    """
    best = worth == worth.max()
    top = float(scores[best].max() > scores[~best].max())
    gains = (worth[:, None] > worth).sum(1).astype(np.float64)
    discounts = 1 / np.log2(np.arange(2, len(worth) + 2))
    _, block, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    shared = np.repeat(np.bincount(block, weights=gains) / sizes, sizes)
    ndcg = float(shared @ discounts / (np.sort(gains)[::-1] @ discounts))
    truth, predicted = (np.sign(values[:, None] - values) for values in (worth, scores))
    untied = np.abs(predicted).sum()
    tau = float((truth * predicted).sum() / np.sqrt(np.abs(truth).sum() * untied)) if untied else 0.0
    return top, ndcg, tau


@dataclass(frozen=True)
class Orders:
    """The groups of known order, with their candidates' positions in the row of all candidates.

    Attributes:
        worth: [O] arrays of [K] worths.
        first_candidate: [O] index of the group's first candidate in the row of candidates.
        prompt: [O] number of the group's prompt.
    """

    worth: list[Floats]
    first_candidate: list[int]
    prompt: list[int]
    resamples: int
    seed: int

    @classmethod
    def from_groups(cls, groups: Sequence[PreferenceGroup], prompts: Ints, resamples: int, seed: int) -> Orders:
        """The groups of known order; `prompts` is [G], a number for every group's prompt."""
        ordered = cls([], [], [], resamples, seed)
        first_candidate = 0
        for group, prompt in zip(groups, prompts.tolist(), strict=True):
            worth = known_worth(group)
            if worth is not None:
                ordered.worth.append(worth)
                ordered.first_candidate.append(first_candidate)
                ordered.prompt.append(prompt)
            first_candidate += len(group.candidates)
        return ordered

    def compare(self, scores: Floats) -> dict[str, Estimate]:
        """Metrics of [C] scores with intervals over prompts, by name; empty without such groups."""
        metrics = [
            order_metrics(worth, scores[first_candidate : first_candidate + len(worth)])
            for worth, first_candidate in zip(self.worth, self.first_candidate, strict=True)
        ]
        columns = zip(ORDER_METRICS, zip(*metrics, strict=True), strict=True) if metrics else ()
        return {
            name: (resampled_mean if name == KENDALL_TAU else bootstrap_mean)(
                values, self.prompt, resamples=self.resamples, seed=self.seed
            )
            for name, values in columns
        }


LOG_PROB = ("summed log-prob", "nats")
MEAN_LOG_PROB = ("log-prob per token, end-of-turn included", "nats per token")
LOG_RATIO = ("log-ratio log pi(y|x) - log ref(y|x)", "nats, not multiplied by beta")
REWARD = ("reward of the model's head", "in the head's own unit")

_OVER_PAIRS = "mean over a group’s pairs, then over groups"
_OF_PAIRS = {
    "accuracy": f"share of pairs whose preferred response has the higher {{score}} (a tie is wrong); {_OVER_PAIRS}",
    "auc": "ROC-AUC of {score}: preferred against other responses of all prompts (a tie is half); pooled over pairs",
    "margin": f"{{score}}: preferred minus other response; {{unit}}; {_OVER_PAIRS}",
    "ties": f"share of pairs with exactly equal {{score}}; {_OVER_PAIRS}",
    "length_accuracy": f"share of pairs whose preferred response has more tokens (a tie is wrong); {_OVER_PAIRS}",
}
_OF_TEXT = {
    "eval_loss": "mean negative log-prob of a token, end-of-turn included; nats per token; over the tokens of "
    "responses that nothing is preferred to",
    "perplexity": "exp of eval_loss",
}


def definitions(names: Iterable[str], scores: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Definitions of these metrics by name.

    Args:
        names: names of metrics, perhaps with a prefix.
        scores: prefix -> (compared score, its unit); the empty prefix is that of the main score.
    """
    templates = {
        **_OF_PAIRS,
        **_OF_TEXT,
        **{name: f"{line}; mean {ORDERED}" for name, line in ORDER_METRICS.items()},
        **{name: f"{line}; mean {CHOSEN_FROM}" for name, line in CHOICE_METRICS.items()},
    }
    lines = {}
    for name in names:
        prefix = next(p for p in scores if name.startswith(p) and name[len(p) :] in templates)
        score, unit = scores[prefix]
        lines[name] = templates[name[len(prefix) :]].format(score=score, unit=unit)
    return lines
