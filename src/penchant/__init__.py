"""Penchant trains, measures and compares language models on human preferences.

The public face; everything heavy is imported when it is first used.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

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
    from penchant.planning.train import train

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


@cache
def lazy_modules(file: str) -> dict[str, str]:
    """The module of every name that a file of this package imports for type checkers only."""
    nodes = ast.walk(ast.parse(Path(file).read_text(encoding="utf-8")))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and str(node.module).startswith("penchant.")]
    return {name.name: str(node.module) for node in imports for name in node.names}


def __getattr__(name: str) -> object:
    if name not in lazy_modules(__file__):
        raise AttributeError(f"module 'penchant' has no attribute {name!r}")
    return getattr(import_module(lazy_modules(__file__)[name]), name)
