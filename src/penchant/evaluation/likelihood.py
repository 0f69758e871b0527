"""How likely a model finds the responses that nothing is preferred to: mean loss of a token, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence

from penchant.data.groups import PreferenceGroup
from penchant.evaluation.preference_pairs import prompt_numbers
from penchant.evaluation.statistics import Estimate, bootstrap_ratio

LIKELIHOOD = ("eval_loss", "perplexity")


def likelihood(
    groups: Sequence[PreferenceGroup],
    log_probs: Sequence[Sequence[float]],
    tokens: Sequence[Sequence[int]],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Mean negative log-prob of a token over all such responses (nats), and its exp; empty where there is none.

    Left out are responses another is preferred to, and those labelled undesirable, as supervised fine-tuning does.

    Args:
        log_probs, tokens: [G][K] summed log-probs in nats, and the tokens in them.
        resamples, seed: of the bootstrap over prompts.
    """
    prompts = prompt_numbers(groups).tolist()
    nll, counts, clusters = [], [], []
    for g, group in enumerate(groups):
        for k in learnt_candidates(group):
            nll.append(-log_probs[g][k])
            counts.append(tokens[g][k])
            clusters.append(prompts[g])
    if not nll:
        return {}
    loss = bootstrap_ratio(nll, counts, clusters, resamples=resamples, seed=seed)
    return {"eval_loss": loss, "perplexity": Estimate(_exp(loss.value), _exp(loss.low), _exp(loss.high), loss.n)}


def learnt_candidates(group: PreferenceGroup) -> list[int]:
    """Candidates that nothing in their group is preferred to and that are not labelled undesirable."""
    worse = {worse for _, worse in group.pairs}
    labels = group.labels or (True,) * len(group.candidates)
    return [k for k in range(len(group.candidates)) if k not in worse and labels[k]]


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
