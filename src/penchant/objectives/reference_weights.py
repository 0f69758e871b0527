"""How much each of R references counts in multi-reference DPO (arXiv 2405.16388 and 2512.10040).

m_k is reference k's length-normalised margin of a pair: ``l_k(y_w)/n_w - l_k(y_l)/n_l``. Shapes: P pairs of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penchant.objectives.base import Groups, State
from penchant.objectives.pairs import mean_log_probs


def pair_margins(reference: Tensor, groups: Groups) -> Tensor:
    """[R, P] m_k of every preferred pair, nats per token."""
    means = torch.stack([mean_log_probs(table, groups) for table in reference])
    return (means[:, :, :, None] - means[:, :, None, :])[:, groups.better]


def adaptive(chosen: Tensor, rejected: Tensor) -> Tensor:
    """ARWC, MRPO's own: each pair's weights ``|l_k(y_w) - l_k(y_l)| / (sum_j |...| + 1e-6)``.

    A baseline: a confidently *wrong* reference gets the weight. Uniform where no reference tells the two apart.

    Args:
        chosen, rejected: [R, ...] summed log-probs.
    """
    gaps = (chosen - rejected).abs()
    total = gaps.sum(0)
    return torch.where(total > 0, gaps / (total + 1e-6), 1 / len(gaps))


def validation_margin(margins: Tensor) -> Tensor:
    """VDW: ``a_k ~ max(0, mean of m_k)``; uniform where no reference has a positive mean. [R] from [R, P]."""
    return _normalised(margins.mean(1).clamp(min=0))


def validation_accuracy(margins: Tensor, above_chance: bool) -> Tensor:
    """VAW: ``a_k ~ A_k``, the share of pairs with m_k > 0; or ``max(0, A_k - 1/2)``. [R] from [R, P]."""
    accuracy = (margins > 0).to(margins.dtype).mean(1)
    return _normalised((accuracy - 0.5).clamp(min=0) if above_chance else accuracy)


def best_single(margins: Tensor) -> Tensor:
    """All weight on the reference with the highest VAW accuracy. [R] from [R, P]."""
    return one_hot(int((margins > 0).sum(1).argmax()), margins)


def one_hot(k: int, like: Tensor) -> Tensor:
    """[R] all weight on reference k."""
    weights = like.new_zeros(like.shape[0])
    weights[k] = 1.0
    return weights


def window_weights(state: State) -> Tensor:
    """Sliding window: ``a_k ~ max(0, mean of m_k over the last W batches)``; uniform before the first."""
    window, filled = state["window"], int(state["filled"])
    return _normalised(window[: min(filled, len(window))].sum(0).clamp(min=0))


def window_after(state: State, margins: Tensor) -> State:
    """The window with a batch's mean margins; a batch without a pair leaves it."""
    if not margins.shape[1]:
        return state
    window = state["window"].clone()
    window[int(state["filled"]) % len(window)] = margins.mean(1).to(window)
    return {**state, "window": window, "filled": state["filled"] + 1}


def thompson_draw(state: State) -> int:
    """The reference with the largest draw from its Beta posterior: a function of (seed, step), the same everywhere."""
    successes, failures = state["successes"].cpu(), state["failures"].cpu()
    generator = torch.Generator().manual_seed(int(state["seed"]) * 1_000_003 + int(state["step"]))
    # A Beta draw is the share of one of two Gamma draws.
    gammas = torch._standard_gamma(torch.stack([1 + successes, 1 + failures]), generator=generator)
    return int((gammas[0] / gammas.sum(0)).argmax())


def thompson_best(state: State) -> int:
    """The reference with the highest posterior mean."""
    return int(((1 + state["successes"]) / (2 + state["successes"] + state["failures"])).argmax())


def thompson_after(state: State, pulled: int, margins: Tensor, discount: float) -> State:
    """The posterior with a batch's pairs: those the pulled reference orders right, and those it does not."""
    right = (margins[pulled] > 0).sum().to(state["successes"])
    wrong = margins.shape[1] - right
    pull = one_hot(pulled, state["successes"])
    successes, failures = (discount * state[name] for name in ("successes", "failures"))
    return {
        **state,
        "successes": successes + pull * right,
        "failures": failures + pull * wrong,
        "step": state["step"] + 1,
    }


def _normalised(weights: Tensor) -> Tensor:
    total = weights.sum()
    uniform = torch.full_like(weights, 1 / len(weights))
    return torch.where(total > 0, weights / total.clamp(min=1e-30), uniform)
