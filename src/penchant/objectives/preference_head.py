"""Direct preference heads (Hadji-Kyriacou and Arandjelovic 2024, arXiv 2405.20053)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives.base import Groups, Needs, Output, Stateless, require
from penchant.objectives.pairs import Average, average_pairs, differences, pair_metrics


@dataclass(frozen=True)
class PreferenceHead(Stateless):
    """The loss of a reward head r on the language model's last hidden state (section 3.2), e the label smoothing.

    ``separable``: ``[-(1-e) log s(r_w) - e log s(-r_w)] + [-(1-e) log s(-r_l) - e log s(r_l)]``, s the logistic; its
    rewards are absolute (P(good) = s(r)), least at ``r_w = -r_l = log((1-e)/e)``; 2 ln 2 where both are 0.
    ``contrastive``: ``-(1-e) log s(r_w - r_l) - e log s(r_l - r_w)``; only differences mean anything, so never compare
    its rewards with a threshold; ln 2 where both are equal, and with e = 0 Bradley-Terry's loss.

    Differs from the authors' code: `head/chosen` and `head/rejected` are rewards, not losses; and the joint loss with
    cDPO or SFT is a `weighted_sum` of this and that.

    Attributes:
        form: ``separable`` or ``contrastive``.
        label_smoothing: e, in [0, 0.5); the head has no reference, and this is its guard.
        average: over ``groups`` or ``pairs``, as in DPO.
    """

    form: Literal["separable", "contrastive"] = "separable"
    label_smoothing: float = 0.1
    average: Average = "groups"

    name: ClassVar[str] = "preference_head"
    needs: ClassVar[Needs] = Needs(references=0, head=True)

    def __post_init__(self) -> None:
        require(self.form in ("separable", "contrastive"), "form", self.form, "'separable' or 'contrastive'")
        require(0 <= self.label_smoothing < 0.5, "label_smoothing", self.label_smoothing, "a share in [0, 0.5)")
        require(self.average in ("groups", "pairs"), "average", self.average, "'groups' or 'pairs'")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        if groups.rewards is None:
            raise ValueError("this model has no preference head")
        rewards = torch.where(groups.mask, groups.rewards, 0.0)
        if self.form == "contrastive":
            terms = self._smoothed(differences(rewards, groups.better))
        else:
            terms = self._smoothed(rewards)[:, :, None] + self._smoothed(-rewards)[:, None, :]
        losses, weights = average_pairs(terms, groups, self.average)
        metrics = pair_metrics(rewards, policy, groups)
        return Output(losses, weights, {name.replace("rewards/", "head/"): value for name, value in metrics.items()})

    def _smoothed(self, logits: Tensor) -> Tensor:
        return -(1 - self.label_smoothing) * logsigmoid(logits) - self.label_smoothing * logsigmoid(-logits)
