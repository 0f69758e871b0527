"""Penchant trains, measures and compares language models on human preferences.

The public face; everything heavy is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_WHERE = {
    "ConfigError": "penchant.errors",
    "DataError": "penchant.errors",
    "Estimate": "penchant.evaluation.statistics",
    "Groups": "penchant.objectives",
    "ModelError": "penchant.errors",
    "OBJECTIVES": "penchant.objectives",
    "Objective": "penchant.objectives",
    "Output": "penchant.objectives",
    "PenchantError": "penchant.errors",
    "PreferenceGroup": "penchant.data.groups",
    "RunConfig": "penchant.config.run",
    "Sampling": "penchant.evaluation.answering",
    "Sum": "penchant.objectives",
    "answer": "penchant.evaluation.answering",
    "bootstrap_mean": "penchant.evaluation.statistics",
    "check_groups": "penchant.data.checks",
    "compare": "penchant.comparison.run",
    "evaluate_preferences": "penchant.evaluation.preferences",
    "load_bench": "penchant.comparison.config",
    "load_config": "penchant.config.run",
    "open_reward": "penchant.evaluation.rewards",
    "parse_config": "penchant.config.run",
    "rank": "penchant.evaluation.ranking",
    "read_groups": "penchant.data.reading",
    "score": "penchant.evaluation.held_out",
    "split_by_prompt": "penchant.data.splitting",
    "tokenize_groups": "penchant.data.tokenization",
    "train": "penchant.training.run",
    "write_groups": "penchant.data.writing",
}

if TYPE_CHECKING:
    from penchant.comparison.config import load_bench
    from penchant.comparison.run import compare
    from penchant.config.run import RunConfig, load_config, parse_config
    from penchant.data.checks import check_groups
    from penchant.data.groups import PreferenceGroup
    from penchant.data.reading import read_groups
    from penchant.data.splitting import split_by_prompt
    from penchant.data.tokenization import tokenize_groups
    from penchant.data.writing import write_groups
    from penchant.errors import ConfigError, DataError, ModelError, PenchantError
    from penchant.evaluation.answering import Sampling, answer
    from penchant.evaluation.held_out import score
    from penchant.evaluation.preferences import evaluate_preferences
    from penchant.evaluation.ranking import rank
    from penchant.evaluation.rewards import open_reward
    from penchant.evaluation.statistics import Estimate, bootstrap_mean
    from penchant.objectives import OBJECTIVES, Groups, Objective, Output, Sum
    from penchant.training.run import train

__all__ = [
    "OBJECTIVES",
    "ConfigError",
    "DataError",
    "Estimate",
    "Groups",
    "ModelError",
    "Objective",
    "Output",
    "PenchantError",
    "PreferenceGroup",
    "RunConfig",
    "Sampling",
    "Sum",
    "answer",
    "bootstrap_mean",
    "check_groups",
    "compare",
    "evaluate_preferences",
    "load_bench",
    "load_config",
    "open_reward",
    "parse_config",
    "rank",
    "read_groups",
    "score",
    "split_by_prompt",
    "tokenize_groups",
    "train",
    "write_groups",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'penchant' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
