"""Reference weights that follow the batches: a sliding window, and Thompson sampling (after arXiv 2512.10040).

m_k is reference k's length-normalised margin of a pair, as in `reference_weights`; [R, P] of a batch's P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penchant.objectives.base import State
from penchant.objectives.reference_weights import normalise_weights, one_hot


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
