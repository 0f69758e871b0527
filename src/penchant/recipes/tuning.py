"""A recipe's training stage: an ordinary run in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penchant.config import LoraConfig, RunConfig, TrainingConfig, parse_config
from penchant.config_section import Section
from penchant.engine.merging import merge_adapter
from penchant.errors import rename_options_in_errors
from penchant.recipes.reading import READING, ReadingConfig
from penchant.training.run import train


class TunedConfig(Section):
    """A training stage."""

    training: TrainingConfig = TrainingConfig(learning_rate=1e-5)
    lora: LoraConfig | None = None


def stage_keys(setting: str, kind: type[Section] = TunedConfig) -> dict[str, str]:
    """Where the recipe's configuration has a run's keys, for `errors.rename_options_in_errors`.

    Args:
        setting: the stage's dotted path in the recipe's configuration, as in ``methods.dpo``.
        kind: of the section there.
    """
    shared = [name for name in RunConfig.model_fields if name in kind.model_fields]
    return {f"{name}.": f"{setting}.{name}." for name in shared}


def tuning_run(
    folder: Path,
    model: str,
    data: Path,
    held_out: Path | None,
    objective: Mapping[str, Any],
    tuned: TunedConfig,
    *,
    keys: Mapping[str, str],
    online: Mapping[str, Any] | None = None,
    reading: ReadingConfig = READING,
) -> RunConfig:
    """The configuration of a run into ``folder/run``.

    Args:
        model: folder or hub id to start from.
        data, held_out: groups.
        objective: as in a run's configuration.
        keys: of the stage, as an error names them; see `stage_keys`.
        online: of a run on fresh samples, its ``sampling`` and ``reward``.
        reading: how it reads its data.

    Raises:
        ConfigError: it is not valid.
    """
    values = {
        "model": model,
        "data": {"train": str(data), "held_out": str(held_out) if held_out else None, **reading.model_dump()},
        "output": str(folder / "run"),
        "objective": dict(objective),
        "training": tuned.training.model_dump(),
        "lora": tuned.lora.model_dump() if tuned.lora else None,
        "evaluation": {"samples": 0},
    }
    if online is not None:
        values |= {"candidates": "sampled", **online}
    with rename_options_in_errors(keys):
        return parse_config(values, str(folder))


def tune(
    folder: Path,
    model: str,
    data: Path,
    held_out: Path | None,
    objective: Mapping[str, Any],
    tuned: TunedConfig,
    *,
    keys: Mapping[str, str],
    online: Mapping[str, Any] | None = None,
    reading: ReadingConfig = READING,
) -> Path:
    """Train as `tuning_run` says; a run that was interrupted goes on.

    Returns:
        The run's folder.
    """
    config = tuning_run(folder, model, data, held_out, objective, tuned, keys=keys, online=online, reading=reading)
    with rename_options_in_errors(keys):
        return train(config, resume=(folder / "run" / "run.json").exists())


def whole_model(folder: Path, tuned: TunedConfig) -> Path:
    """Where a stage's model is to be found as an ordinary model, for stages that tune it further."""
    return folder / ("merged" if tuned.lora else "run")


def merge_where_adapted(folder: Path, tuned: TunedConfig) -> None:
    """Make `whole_model` of what `tune` left, where that is an adapter."""
    if tuned.lora is not None and not whole_model(folder, tuned).exists():
        merge_adapter(str(folder / "run"), whole_model(folder, tuned))
