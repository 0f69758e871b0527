"""beta-DPO: a beta that follows the batch, and a batch without its outliers (Wu et al. 2024, arXiv 2407.08639)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives.base import Groups, Needs, Output, State, Sum, require
from penchant.objectives.dpo import DPO
from penchant.objectives.draws import draw_pairs
from penchant.objectives.pairs import average_pairs, differences, log_ratios, pair_metrics


@dataclass(frozen=True)
class BetaDPO:
    """DPO's loss at ``beta_0 (1 + alpha (mean M - M0))`` over the pairs kept, M_i = h_i without its gradient.

    Over all N pairs of the optimizer batch (section 4): M0 and s follow the mean and (sample) standard deviation of M;
    int(rho N) pairs are drawn without replacement with weights ``exp(-(M_i - M0)^2 / (2 s^2))``; the loss is the mean
    over them. With alpha = 0 and rho = 1 it is DPO averaged over pairs. Evaluation is DPO at beta_0, with no filter.

    Differs from the paper, which may have beta_0 inside M: as in the authors' code it is not, so alpha is per nat.
    Differs from that code: M0 and s begin with the first batch's instead of 0 (``start: zero`` is theirs), and s has a
    floor, so that equal gaps are drawn uniformly instead of giving 0/0. Which pairs are drawn follows their place in
    the batch, not the order of their gaps, which rounding could turn: a batch in another order is another draw.

    Attributes:
        beta: beta_0, > 0.
        alpha: how far beta follows the gap, per nat, >= 0.
        keep: rho, the share of pairs kept, in (0, 1].
        momentum: m, of the moving values, in [0, 1).
        level: one beta for the ``batch``, or one for each ``instance`` (the paper finds it unstable).
        start: moving values begin with the ``first_batch`` that has a pair, or at ``zero``.
    """

    beta: float = 0.1
    alpha: float = 0.6
    keep: float = 0.8
    momentum: float = 0.9
    level: Literal["batch", "instance"] = "batch"
    start: Literal["first_batch", "zero"] = "first_batch"

    name: ClassVar[str] = "beta_dpo"
    needs: ClassVar[Needs] = Needs()
    coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")
        require(self.alpha >= 0, "alpha", self.alpha, "a number of at least 0")
        require(0 < self.keep <= 1, "keep", self.keep, "a share in (0, 1]")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "a number in [0, 1)")
        require(self.level in ("batch", "instance"), "level", self.level, "'batch' or 'instance'")
        require(self.start in ("first_batch", "zero"), "start", self.start, "'first_batch' or 'zero'")

    def initial_state(self, seed: int) -> State:
        zero = torch.zeros((), dtype=torch.float64)
        start = {"seed": torch.tensor(seed, dtype=torch.int64), "step": torch.zeros((), dtype=torch.int64)}
        return {**start, "mean": zero, "deviation": zero.clone()}

    def __call__(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> tuple[Output, State]:
        ratios = log_ratios(policy, reference[0], groups)
        margins = differences(ratios, groups.better)
        gaps = margins.detach()[groups.better].double()
        after = self._follow(gaps, state)
        distance = (gaps - after["mean"].to(gaps)) / after["deviation"].to(gaps).clamp(min=1e-8)
        weights = -(distance**2) / 2 if float(after["deviation"]) > 1e-8 else torch.zeros_like(distance)
        kept = draw_pairs(groups.better, weights, self.keep, int(state["seed"]), int(after["step"]))
        gap = margins.detach()
        if self.level == "batch":
            gap = gap[kept].mean() if kept.any() else gap.new_zeros(())
        beta = (self.beta * (1 + self.alpha * (gap - after["mean"].to(gap)))).clamp(min=1e-3)
        of_kept = Groups(**{**vars(groups), "better": kept})
        losses, group_weights = average_pairs(-logsigmoid(beta * margins), of_kept, "pairs")
        metrics = pair_metrics(self.beta * ratios, policy, groups)
        one, some = gaps.new_ones(()), gaps.new_tensor(float(len(gaps)))
        used = beta.expand_as(margins)[kept].double()
        metrics["beta_dpo/beta"] = Sum(used.sum(), some.new_tensor(float(len(used))))
        metrics["beta_dpo/kept"] = Sum(kept.sum().double(), some)
        metrics["beta_dpo/mean"] = Sum(after["mean"], one)
        metrics["beta_dpo/deviation"] = Sum(after["deviation"], one)
        return Output(losses, group_weights, metrics), after

    def evaluate(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> Output:
        return DPO(self.beta, "pairs").output(policy, reference, groups)

    def _follow(self, gaps: Tensor, state: State) -> State:
        """The moving values after this batch, all of it."""
        if not len(gaps):
            return state  # Not a step, or the next batch would not be the first and the values would begin at 0.
        after = {**state, "step": state["step"] + 1}
        found = {"mean": gaps.mean(), "deviation": gaps.std() if len(gaps) > 1 else gaps.new_zeros(())}
        first = self.start == "first_batch" and int(state["step"]) == 0
        m = 0.0 if first else self.momentum
        moved = {name: m * state[name] + (1 - m) * value.to(state[name]) for name, value in found.items()}
        return {**after, **moved}
