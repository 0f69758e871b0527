"""beta-DPO: a beta that follows the batch, and a batch without its outliers (Wu et al. 2024, arXiv 2407.08639)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives.base import Groups, Needs, Output, State, Sum, require
from penchant.objectives.dpo import DPO
from penchant.objectives.draws import draw_pairs
from penchant.objectives.moments import LEAST_DEVIATION, STARTS, initial_moments, update_moments
from penchant.objectives.pairs import average_pairs, differences, log_ratios, pair_metrics


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
