"""One file per method; this registry is where a method becomes known by name."""

from __future__ import annotations

from penchant.objectives.base import Groups, Objective, Output, State, Sum
from penchant.objectives.dpo import DPO
from penchant.objectives.sft import SFT

OBJECTIVES: dict[str, type[Objective]] = {method.name: method for method in (DPO, SFT)}

__all__ = ["DPO", "OBJECTIVES", "SFT", "Groups", "Objective", "Output", "State", "Sum"]
