"""A recipe's training stage: an ordinary run in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penchant.config import LoraConfig, Section, TrainingConfig, parse_config
from penchant.training.run import train


class TunedConfig(Section):
    """A training stage."""

    training: TrainingConfig = TrainingConfig(learning_rate=1e-5)
    lora: LoraConfig | None = None


def tune(
    folder: Path, model: str, data: Path, held_out: Path | None, objective: Mapping[str, Any], tuned: TunedConfig
) -> Path:
    """Train into ``folder/run``; a run that was interrupted goes on.

    Args:
        model: folder or hub id to start from.
        data, held_out: groups.
        objective: as in a run's configuration.

    Returns:
        The run's folder.
    """
    output = folder / "run"
    values = {
        "model": model,
        "data": {"train": str(data), "held_out": str(held_out) if held_out else None},
        "output": str(output),
        "objective": dict(objective),
        "training": tuned.training.model_dump(),
        "lora": tuned.lora.model_dump() if tuned.lora else None,
        "evaluation": {"samples": 0},
    }
    return train(parse_config(values, str(folder)), resume=(output / "run.json").exists())
