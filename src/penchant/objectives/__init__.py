"""One file per method; this registry is where a method becomes known by name."""

from __future__ import annotations

from penchant.objectives.base import Fitted, Groups, Needs, Objective, Output, State, Stateless, Sum
from penchant.objectives.dpo import DPO
from penchant.objectives.sft import SFT
from penchant.objectives.weighted_sum import Part, WeightedSum

OBJECTIVES: dict[str, type[Objective]] = {method.name: method for method in (DPO, SFT, WeightedSum)}

__all__ = [
    "DPO",
    "OBJECTIVES",
    "SFT",
    "Fitted",
    "Groups",
    "Needs",
    "Objective",
    "Output",
    "Part",
    "State",
    "Stateless",
    "Sum",
    "WeightedSum",
]
