"""Settings that are ``auto``: as the run's folder records them, else what suits its device."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from penchant.config.run import RunConfig, read_yaml
from penchant.config.run_sections import Dtype, DtypeChoice
from penchant.engine.device import best_dtype, require_dtype

logger = logging.getLogger(__name__)


def with_training(config: RunConfig, **settings: Any) -> RunConfig:
    """The configuration with these keys of `training`."""
    return config.model_copy(update={"training": config.training.model_copy(update=settings)})


def as_recorded(config: RunConfig) -> RunConfig:
    """The configuration with ``auto`` replaced by what the run in its folder was started with; else as it is."""
    folder = Path(config.output)
    automatic = [name for name in ("dtype", "token_budget") if getattr(config.training, name) == "auto"]
    if not automatic or not (folder / "run.json").exists():
        return config
    recorded = read_yaml(folder / "config.yaml").get("training", {})
    return with_training(config, **{name: recorded[name] for name in automatic if name in recorded})


def choose_dtype(choice: DtypeChoice, device: torch.device) -> Dtype:
    """The dtype of a run's matrix products on a device; ``auto`` becomes the best one.

    Raises:
        ConfigError: the configured dtype does not run on the device.
    """
    if choice != "auto":
        require_dtype(choice, device)
        return choice
    dtype = best_dtype(device)
    if dtype == "float16":
        logger.info(
            "training.dtype: auto is float16 with a scaled loss here, as this card has no bfloat16 (compute capability "
            "below 8.0)"
        )
    return dtype
