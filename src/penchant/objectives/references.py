"""Several references as one: their weights, mixtures of their log-probs, and the trust region around the first.

After arXiv 2405.16388 and 2512.10040. m_k is reference k's length-normalised margin of a pair:
``l_k(y_w)/n_w - l_k(y_l)/n_l``. Shapes: R references, P pairs of a batch; tables of pairs are [R, G, K, K].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from penchant.objectives.base import Groups, State
from penchant.objectives.pairs import mean_log_probs


def pair_margins(reference: Tensor, groups: Groups) -> Tensor:
    """Margins [R, P] m_k of every preferred pair, nats per token."""
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


def authors_weights(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Adaptive weights of two references as the harmonic branch of the code of arXiv 2405.16388 applies them.

    With ``alpha = |gap_2| / (|gap_1| + |gap_2| + 1e-6)`` the second reference's weight is alpha and the first's
    1 - alpha; the code multiplies ``1 / ref_1`` by alpha and ``1 / ref_2`` by 1 - alpha, the wrong way round.

    Args:
        chosen, rejected: [2, ...] summed log-probs, the primary first.
    """
    gaps = (chosen - rejected).abs()
    alpha = gaps[1] / (gaps.sum(0) + 1e-6)
    return torch.stack([alpha, 1 - alpha])


PAIRWISE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"adaptive": adaptive, "authors_weights": authors_weights}
"""Weightings of every pair by its own log-probs: [R, ...] chosen and rejected sums to [R, ...] weights."""


def validation_margin(margins: Tensor) -> Tensor:
    """VDW: ``a_k ~ max(0, mean of m_k)``; uniform where no reference has a positive mean. [R] from [R, P]."""
    return normalise_weights(margins.mean(1).clamp(min=0))


def validation_accuracy(margins: Tensor, above_chance: bool) -> Tensor:
    """VAW: ``a_k ~ A_k``, the share of pairs with m_k > 0; or ``max(0, A_k - 1/2)``. [R] from [R, P]."""
    accuracy = (margins > 0).to(margins.dtype).mean(1)
    return normalise_weights((accuracy - 0.5).clamp(min=0) if above_chance else accuracy)


def best_single(margins: Tensor) -> Tensor:
    """All weight on the reference with the highest VAW accuracy. [R] from [R, P]."""
    return one_hot(int((margins > 0).sum(1).argmax()), margins)


def one_hot(k: int, like: Tensor) -> Tensor:
    """Weights [R] with all weight on reference k."""
    weights = like.new_zeros(like.shape[0])
    weights[k] = 1.0
    return weights


def normalise_weights(weights: Tensor) -> Tensor:
    """Weights [R] divided by their sum; uniform where the sum is 0."""
    total = weights.sum()
    uniform = torch.full_like(weights, 1 / len(weights))
    return torch.where(total > 0, weights / total.clamp(min=1e-30), uniform)


def window_weights(state: State) -> Tensor:
    """Weights [R] by the window: ``a_k ~ max(0, mean of m_k over the last W batches)``; uniform before the first."""
    window, filled = state["window"], int(state["filled"])
    return normalise_weights(window[: min(filled, len(window))].sum(0).clamp(min=0))


def window_after(state: State, margins: Tensor) -> State:
    """The state whose window holds a batch's mean margins too; a batch without a pair leaves it unchanged."""
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
    """The state whose posterior counts a batch's pairs: those the pulled reference orders right, and the others."""
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


def pair_sides(
    policy: Tensor, reference: Tensor, groups: Groups, normalize: Literal["sum", "mean"]
) -> tuple[Tensor, Tensor, Tensor]:
    """The policy's log-probs [G, K], and the references' of each pair's first and second candidate.

    They are 0 (with no gradient) where there is no candidate, so that no pair of candidates is NaN.

    Args:
        normalize: summed log-probs, or those per token (of the policy's tokens).
    """
    if normalize == "sum":
        policy_log_probs, tables = torch.where(groups.mask, policy, 0.0), torch.where(groups.mask, reference, 0.0)
    else:
        policy_log_probs, tables = mean_log_probs(policy, groups), mean_log_probs(reference, groups)
    shape = (len(tables), *groups.better.shape)
    return policy_log_probs, tables[:, :, :, None].expand(shape), tables[:, :, None, :].expand(shape)


def harmonic(tables: Tensor, weights: Tensor) -> Tensor:
    """Harmonic mixture [G, K, K] ``-logsumexp_k(log a_k - l_k)``; a reference of weight 0 has no part in it."""
    return -torch.logsumexp(weights.log() - tables, 0)


def geometric(tables: Tensor, weights: Tensor) -> Tensor:
    """Geometric mixture [G, K, K] ``sum_k a_k l_k``."""
    return (weights * tables).sum(0)


MIXTURES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "harmonic": harmonic,
    "geometric": geometric,
    # Its loss is mixed, not its references; its reward is the mean over references.
    "multi_loss": geometric,
}


def clip(
    chosen: Tensor, rejected: Tensor, largest: float, radius: Literal["adaptive", "fixed"]
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """CTRO: every reference within a share e_y of the first, ``(1 + e_y) l_1 <= l_k <= (1 - e_y) l_1``.

    Args:
        largest: e_max; ``adaptive`` shares are ``e_max |b_y| / (|b_w| + |b_l|)``, b the mean over references.

    Returns:
        both sides [R, G, K, K], and bool, whether a value was clipped on either.
    """
    sizes = chosen.mean(0).abs(), rejected.mean(0).abs()
    total_size = (sizes[0] + sizes[1]).clamp(min=1e-30)
    sides = []
    for tables, size in zip((chosen, rejected), sizes, strict=True):
        share = largest * size / total_size if radius == "adaptive" else torch.full_like(size, largest)
        ends = (1 - share) * tables[0], (1 + share) * tables[0]
        bounded = tables.clamp(torch.minimum(*ends), torch.maximum(*ends))
        sides.append(torch.cat([tables[:1], bounded[1:]]))
    return (sides[0], sides[1]), (sides[0] != chosen) | (sides[1] != rejected)
