"""Training whose token budget, where it is ``auto``, is planned for the card."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from penchant.config.run import RunConfig
from penchant.config.run_sections import SAFE_TOKEN_BUDGET
from penchant.engine.device import local_device
from penchant.engine.memory import available_bytes
from penchant.planning.plan import new_planner
from penchant.training.inputs import Inputs
from penchant.training.run import train as train_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def train(config: RunConfig, *, resume: bool = False) -> Path:
    """Train one run and write its folder.

    Args:
        resume: resume the run in the output folder.

    Returns:
        The output folder.

    Raises:
        PenchantError: the user's configuration, data, model or disk is at fault; says how to resume or mend it.
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after saving.
    """
    return train_run(config, resume=resume, choose_budget=planned_budget)


def planned_budget(config: RunConfig, inputs: Inputs, tokenizer: PreTrainedTokenizerBase, limit: int) -> int:
    """The token budget of a run on this process's device: the plan's on a CUDA card, which is logged."""
    device = local_device()
    if device.type != "cuda":
        return SAFE_TOKEN_BUDGET
    planner = new_planner(config, inputs, tokenizer, limit, device, available_bytes(device))
    budget = planner.config.training.resolved_token_budget
    if planner.budget_warning is not None:
        logger.warning(planner.budget_warning)
    else:
        logger.info(f"training.token_budget: auto is {budget:,} tokens, by a plan of the memory")
    return budget
