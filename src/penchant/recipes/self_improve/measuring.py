"""How good a learner is on prompts it is never tuned on, and whether it collapses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penchant.config import SamplingConfig
from penchant.data.groups import PreferenceGroup
from penchant.recipes.reading import read_log_probs
from penchant.recipes.self_improve.learner import TextLearner
from penchant.recipes.self_improve.served import Served
from penchant.recipes.self_improve.verifying import Verifier


@dataclass(frozen=True)
class Measured:
    """A learner's answers to some prompts.

    Attributes:
        satisfied: of each prompt 1 or 0.
        words: mean of an answer's.
        distinct: share of pairs of neighbouring words that occur once; falls where answers become one another.
        kl: nats by which an answer is likelier to this learner than to the first, the mean; 0 of the first.
    """

    satisfied: tuple[float, ...]
    score: float
    words: float
    distinct: float
    kl: float

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "satisfied": list(self.satisfied)}


def measure(
    served: Served,
    first: str,
    prompts: Sequence[str],
    verifier: Verifier,
    sampling: SamplingConfig,
    *,
    seed: int,
    token_budget: int,
) -> Measured:
    """One answer to each prompt, by the same draws whatever the learner.

    Args:
        first: the learner it all began with.
    """
    answers = TextLearner(served, sampling).answer(prompts, seed)
    verdicts = verifier(prompts, answers)
    pairs = [pair for text in answers for pair in zip(text.split(), text.split()[1:], strict=False)]
    kl = 0.0
    told = [
        PreferenceGroup(p, (a,), id=str(n)) for n, (p, a) in enumerate(zip(prompts, answers, strict=True)) if a.strip()
    ]
    if served.model != first and told:
        ours, theirs = (read_log_probs(model, told, token_budget) for model in (served.model, first))
        kl = float(np.mean([a.log_probs[0] - b.log_probs[0] for a, b in zip(ours, theirs, strict=True)]))
    return Measured(
        tuple(float(verdict.satisfied) for verdict in verdicts),
        float(np.mean([verdict.score for verdict in verdicts])),
        float(np.mean([len(text.split()) for text in answers])),
        len(set(pairs)) / len(pairs) if pairs else 0.0,
        kl,
    )
