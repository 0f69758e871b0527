"""beta-DPO: a beta that follows the batch, and a batch without its outliers (Wu et al. 2024, arXiv 2407.08639)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives.base import Groups, Needs, Output, State, Sum, require
from penchant.objectives.dpo import DPO
from penchant.objectives.pairs import average_pairs, differences, log_ratios, pair_metrics

LEAST_DEVIATION = 1e-3
"""Nats. Below it a deviation of log-ratios is rounding noise, which moves with the size of the micro-batches."""


def initial_moments() -> State:
    """The moments before the first batch: step 0, mean 0, deviation 0."""
    values = {name: torch.zeros((), dtype=torch.float64) for name in ("mean", "deviation")}
    return {"step": torch.zeros((), dtype=torch.int64), **values}


def bias_corrected(momentum: float, state: State) -> float:
    """``(1 - m) / (1 - m^t)`` at batch t: the average from 0 divided by ``1 - m^t``, a weighted mean of t batches."""
    return (1 - momentum) / (1 - momentum ** (int(state["step"]) + 1))


def first_batch(momentum: float, state: State) -> float:
    """1 until a batch's deviation is above the floor, then 1 - m: the average starts at that batch's value."""
    return 1.0 if float(state["deviation"]) <= LEAST_DEVIATION else 1 - momentum


def zero(momentum: float, state: State) -> float:
    """1 - m at every batch: the average starts at 0, and is biased towards it."""
    return 1 - momentum


STARTS: Mapping[str, Callable[[float, State], float]] = {
    "bias_corrected": bias_corrected,
    "first_batch": first_batch,
    "zero": zero,
}
"""Rules for the first batches of a moving average, by the name of the option."""


def update_moments(values: Tensor, momentum: float, start: str, state: State) -> State:
    """The moving mean and (sample) standard deviation after a batch; a batch without values leaves them.

    Args:
        values: [N] the values of the batch.
        momentum: m, in [0, 1).
        start: a name in `STARTS`.
    """
    if not len(values):
        return state  # Not a step, or the next batch would not be the first.
    weight = STARTS[start](momentum, state)
    deviation = values.std() if len(values) > 1 else values.new_zeros(())
    batch = {"mean": values.mean(), "deviation": deviation}
    averages = {name: state[name] + weight * (value.to(state[name]) - state[name]) for name, value in batch.items()}
    return {**state, "step": state["step"] + 1, **averages}


def draw_pairs(better: Tensor, log_weights: Tensor, share: float, seed: int, step: int) -> Tensor:
    """A share of the preferred pairs, without replacement, by their weights.

    Args:
        better: [G, K, K] bool, N of them True.
        log_weights: [N], of the pairs in the order of `better`.
        share: int(share N) pairs are drawn, at least one.

    Returns:
        [G, K, K] bool, the pairs drawn.
    """
    count = min(len(log_weights), max(1, int(share * len(log_weights))))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    uniform = torch.rand(len(log_weights), generator=generator, dtype=torch.float64)
    # The largest log-weight + Gumbel noise is a draw without replacement, and far outliers do not underflow.
    noisy = log_weights.cpu().double() - torch.log(-torch.log(uniform))
    chosen = torch.zeros(len(log_weights), dtype=torch.bool)
    chosen[noisy.topk(count).indices] = True
    drawn_pairs = torch.zeros_like(better)
    drawn_pairs[better] = chosen.to(better.device)
    return drawn_pairs


@dataclass(frozen=True)
class BetaDPO:
    """DPO's loss at ``beta_0 (1 + alpha (mean M - M0))`` over the pairs drawn, M_i = h_i without its gradient.

    Over all N pairs of the optimizer batch (section 4): M0 and s are moving averages of the mean and (sample) standard
    deviation of M; int(rho N) pairs are drawn without replacement with weights ``exp(-(M_i - M0)^2 / (2 s^2))``; the
    loss is their mean. With alpha = 0 and rho = 1 it is DPO averaged over pairs. Evaluation is DPO at beta_0 over all
    pairs.

    Differs from the paper, which may have beta_0 inside M: as in the authors' code it is not, so alpha is per nat.
    Differs from that code, whose averages start at 0 (``start: zero``): they are divided by 1 - m^t, so that the first
    batches count in full. And s is at least 1e-3 nats: at pi == ref all gaps are rounding noise, and the pairs are
    drawn all but uniformly. A draw follows the pairs' positions in the batch: a batch in another order is another draw.

    Attributes:
        beta: beta_0, > 0.
        alpha: how far beta follows the gap, per nat, >= 0.
        keep: rho, the share of pairs drawn, in (0, 1].
        momentum: m, of the moving values, in [0, 1).
        level: one beta for the ``batch``, or one for each ``instance`` (the paper finds it unstable).
        start: averages from 0 are ``bias_corrected`` by 1 - m^t, begin with the ``first_batch`` whose gaps differ by
            more than rounding (s > 1e-3), or stay as they are from ``zero``.
    """

    beta: float = 0.1
    alpha: float = 0.6
    keep: float = 0.8
    momentum: float = 0.9
    level: Literal["batch", "instance"] = "batch"
    start: Literal["bias_corrected", "first_batch", "zero"] = "bias_corrected"

    name: ClassVar[str] = "beta_dpo"
    needs: ClassVar[Needs] = Needs()
    coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")
        require(self.alpha >= 0, "alpha", self.alpha, "a number of at least 0")
        require(0 < self.keep <= 1, "keep", self.keep, "a share in (0, 1]")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "a number in [0, 1)")
        require(self.level in ("batch", "instance"), "level", self.level, "'batch' or 'instance'")
        require(self.start in STARTS, "start", self.start, f"one of {', '.join(STARTS)}")

    def initial_state(self, seed: int) -> State:
        return {"seed": torch.tensor(seed, dtype=torch.int64), **initial_moments()}

    def __call__(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> tuple[Output, State]:
        ratios = log_ratios(policy, reference[0], groups)
        margins = differences(ratios, groups.better)
        gaps = margins.detach()[groups.better].double()
        new_state = update_moments(gaps, self.momentum, self.start, state)
        distance = (gaps - new_state["mean"].to(gaps)) / new_state["deviation"].to(gaps).clamp(min=LEAST_DEVIATION)
        drawn_pairs = draw_pairs(
            groups.better, -(distance**2) / 2, self.keep, int(state["seed"]), int(new_state["step"])
        )
        gap = margins.detach()
        if self.level == "batch":
            gap = gap[drawn_pairs].mean() if drawn_pairs.any() else gap.new_zeros(())
        beta = (self.beta * (1 + self.alpha * (gap - new_state["mean"].to(gap)))).clamp(min=1e-3)
        losses, group_weights = average_pairs(-logsigmoid(beta * margins), replace(groups, better=drawn_pairs), "pairs")
        metrics = pair_metrics(self.beta * ratios, policy, groups)
        betas = beta.expand_as(margins)[drawn_pairs].double()
        metrics["beta_dpo/beta"] = Sum(betas.sum(), gaps.new_tensor(float(len(betas))))
        metrics["beta_dpo/kept"] = Sum(drawn_pairs.sum().double(), gaps.new_tensor(float(len(gaps))))
        metrics["beta_dpo/mean"] = Sum(new_state["mean"], gaps.new_ones(()))
        metrics["beta_dpo/deviation"] = Sum(new_state["deviation"], gaps.new_ones(()))
        return Output(losses, group_weights, metrics), new_state

    def evaluate(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> Output:
        return DPO(self.beta, "pairs").output(policy, reference, groups)
