"""A recipe's training stage, which is an ordinary training run in the stage's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penchant.config import LoraConfig, RunConfig, TrainingConfig, parse_config
from penchant.config_section import Section
from penchant.engine.merging import merge_adapter
from penchant.errors import rename_options_in_errors
from penchant.recipes.reading import DEFAULT_READING, ReadingConfig
from penchant.training.run import train


class TuningConfig(Section):
    """Settings of a training stage."""

    training: TrainingConfig = TrainingConfig(learning_rate=1e-5)
    lora: LoraConfig | None = None


def stage_keys(setting: str, kind: type[Section] = TuningConfig) -> dict[str, str]:
    """The recipe's configuration key of every key of a run, for `errors.rename_options_in_errors`.

    Args:
        setting: the stage's dotted path in the recipe's configuration, as in ``methods.dpo``.
        kind: class of the configuration section at that path.
    """
    shared = [name for name in RunConfig.model_fields if name in kind.model_fields]
    return {f"{name}.": f"{setting}.{name}." for name in shared}


def tuning_run(
    folder: Path,
    model: str,
    data: Path,
    held_out: Path | None,
    objective: Mapping[str, Any],
    tuned: TuningConfig,
    *,
    keys: Mapping[str, str],
    online: Mapping[str, Any] | None = None,
    reading: ReadingConfig = DEFAULT_READING,
) -> RunConfig:
    """The configuration of a run that writes to ``folder/run``.

    Args:
        model: folder or hub id to start from.
        data, held_out: files of training and held-out groups.
        objective: the ``objective`` section of a run's configuration.
        keys: the stage's configuration keys for error messages; see `stage_keys`.
        online: the ``sampling`` and ``reward`` sections, for a run on fresh samples.
        reading: how the run reads its data.

    Raises:
        ConfigError: the configuration is not valid.
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
    tuned: TuningConfig,
    *,
    keys: Mapping[str, str],
    online: Mapping[str, Any] | None = None,
    reading: ReadingConfig = DEFAULT_READING,
) -> Path:
    """Train with the configuration of `tuning_run`; an interrupted run resumes.

    Returns:
        The run's folder.
    """
    config = tuning_run(folder, model, data, held_out, objective, tuned, keys=keys, online=online, reading=reading)
    with rename_options_in_errors(keys):
        return train(config, resume=(folder / "run" / "run.json").exists())


def full_model_folder(folder: Path, tuned: TuningConfig) -> Path:
    """The folder of a stage's full model, adapter merged, from which later stages train further."""
    return folder / ("merged" if tuned.lora else "run")


def write_full_model(folder: Path, tuned: TuningConfig) -> None:
    """Merge the adapter that `tune` trained into `full_model_folder`; nothing to do where it trained all weights."""
    if tuned.lora is not None and not full_model_folder(folder, tuned).exists():
        merge_adapter(str(folder / "run"), full_model_folder(folder, tuned))
