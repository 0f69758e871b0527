"""Supervised fine-tuning: the log-likelihood of the best candidate. The stage before preferences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penchant.objectives.base import Groups, Needs, Output, Stateless, Sum


@dataclass(frozen=True)
class SFT(Stateless):
    """``L = -sum log pi(y|x) / sum |y|``: mean negative log-likelihood of a token, over the batch's tokens.

    The candidates learnt from are those nothing in their group is preferred to, and, where labels are known, not
    labelled undesirable. Source: maximum likelihood; the SFT stage of section 3 of arXiv 2305.18290.

    Differs from TRL: a mean over all tokens of the optimizer batch, however it was cut into micro-batches.
    """

    name: ClassVar[str] = "sft"
    needs: ClassVar[Needs] = Needs(references=0, candidates=1, pairs=False)

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        targets = groups.mask & ~groups.better.any(1) & (groups.labels >= 0)
        tokens = torch.where(targets, groups.tokens, 0).sum(1)
        nll = -torch.where(targets, policy, 0.0).sum(1)
        metrics = {"logps/chosen": Sum(-nll.detach().sum(), targets.sum())}
        return Output(nll / tokens.clamp(min=1), groups.weights * tokens, metrics)
