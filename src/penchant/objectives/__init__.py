"""The registry of objectives: one file per method, each method under its name."""

from __future__ import annotations

from penchant.objectives.base import FittedObjective, Groups, Needs, Objective, Output, State, Stateless, Sum
from penchant.objectives.beta_dpo import BetaDPO
from penchant.objectives.bradley_terry import BradleyTerry
from penchant.objectives.cdpo import CDPO
from penchant.objectives.ddo_rm import DDORM
from penchant.objectives.dpo import DPO
from penchant.objectives.hinge import Hinge
from penchant.objectives.ipo import IPO
from penchant.objectives.kto import KTO
from penchant.objectives.length_normalized_dpo import LengthNormalizedDPO
from penchant.objectives.multi_reference import MultiReference
from penchant.objectives.orpo import ORPO
from penchant.objectives.plackett_luce import PlackettLuce
from penchant.objectives.plackett_luce_reward import PlackettLuceReward
from penchant.objectives.preference_head import PreferenceHead
from penchant.objectives.reward_regression import RewardRegression
from penchant.objectives.rloo import RLOO
from penchant.objectives.robust_dpo import RobustDPO
from penchant.objectives.rpo import RPO
from penchant.objectives.s_dpo import SDPO
from penchant.objectives.sft import SFT
from penchant.objectives.simpo import SimPO
from penchant.objectives.weighted_sum import Part, WeightedSum

_METHODS: tuple[type[Objective], ...] = (
    DPO,
    CDPO,
    RobustDPO,
    IPO,
    Hinge,
    SimPO,
    ORPO,
    RPO,
    KTO,
    LengthNormalizedDPO,
    PlackettLuce,
    SFT,
    BetaDPO,
    SDPO,
    MultiReference,
    DDORM,
    PreferenceHead,
    BradleyTerry,
    PlackettLuceReward,
    RewardRegression,
    RLOO,
    WeightedSum,
)

OBJECTIVES: dict[str, type[Objective]] = {method.name: method for method in _METHODS}

__all__ = [
    "CDPO",
    "DDORM",
    "DPO",
    "IPO",
    "KTO",
    "OBJECTIVES",
    "ORPO",
    "RLOO",
    "RPO",
    "SDPO",
    "SFT",
    "BetaDPO",
    "BradleyTerry",
    "FittedObjective",
    "Groups",
    "Hinge",
    "LengthNormalizedDPO",
    "MultiReference",
    "Needs",
    "Objective",
    "Output",
    "Part",
    "PlackettLuce",
    "PlackettLuceReward",
    "PreferenceHead",
    "RewardRegression",
    "RobustDPO",
    "SimPO",
    "State",
    "Stateless",
    "Sum",
    "WeightedSum",
]
