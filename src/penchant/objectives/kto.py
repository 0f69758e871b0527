"""KTO: learning from yes/no labels of single responses (Ethayarajh et al. 2024, arXiv 2402.01306)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penchant.objectives.base import Groups, Needs, Output, Stateless, Sum, require
from penchant.objectives.pairs import log_ratios


@dataclass(frozen=True)
class KTO(Stateless):
    """Desirable: ``lambda_D (1 - sigma(beta (Delta - z)))``; undesirable: ``lambda_U (1 - sigma(beta (z - Delta)))``.

    ``z = max(0, mean of Delta over mismatched prompt and response)``, over the whole optimizer batch and without a
    gradient (section 4.1). At pi == ref the loss is half of lambda.

    Differs from TRL: a response is borrowed from a random other prompt, once for the run, instead of the next of the
    batch; z is of the whole batch, over all processes, not of a micro-batch. Preferences count as labels: a candidate
    that only wins is desirable, one that only loses is not.

    Attributes:
        beta: strength of the pull towards the reference, > 0.
        desirable_weight: lambda_D, >= 0.
        undesirable_weight: lambda_U, >= 0; set the ratio so that both kinds count alike where one is rare.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    name: ClassVar[str] = "kto"
    needs: ClassVar[Needs] = Needs(candidates=1, pairs=False, labels=True, mismatched=True)
    coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")
        require(self.desirable_weight >= 0, "desirable_weight", self.desirable_weight, "a number of at least 0")
        require(self.undesirable_weight >= 0, "undesirable_weight", self.undesirable_weight, "a number of at least 0")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        mismatched = groups.mask.new_zeros(groups.mask.shape) if groups.mismatched is None else groups.mismatched
        mismatched_ratios = torch.where(mismatched, (policy - reference[0]).detach(), 0.0)
        z = (mismatched_ratios.sum() / mismatched.sum().clamp(min=1)).clamp(min=0)
        ratios = log_ratios(policy, reference[0], groups)
        labels = groups.labels
        weight = torch.where(labels > 0, self.desirable_weight, self.undesirable_weight)
        # 1 - sigma(x) = sigma(-x)
        values = weight * torch.sigmoid(-self.beta * (ratios - z) * labels)
        count = (labels != 0).sum(1)
        losses = torch.where(labels != 0, values, 0.0).sum(1) / count.clamp(min=1)
        return Output(losses, groups.weights * count, self._metrics(ratios, policy, labels, z))

    def _metrics(self, ratios: Tensor, policy: Tensor, labels: Tensor, z: Tensor) -> dict[str, Sum]:
        """Under TRL's names; means over labelled candidates."""

        def mean(values: Tensor, selected: Tensor) -> Sum:
            return Sum(torch.where(selected, values, 0.0).sum().detach(), selected.sum().to(values.dtype))

        kinds = {"chosen": labels > 0, "rejected": labels < 0}
        rewards = {f"rewards/{name}": mean(self.beta * ratios, selected) for name, selected in kinds.items()}
        log_probs = {f"logps/{name}": mean(policy, selected) for name, selected in kinds.items()}
        return {**rewards, **log_probs, "kl": Sum(z, torch.ones_like(z))}
