"""A recipe's training stage, an ordinary run in the stage's folder, and checks of its settings beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from penchant.api import (
    ConfigError,
    DataError,
    LoraConfig,
    PreferenceGroup,
    RunConfig,
    Section,
    TrainingConfig,
    filter_learnable_groups,
    merge_adapter,
    parse_config,
    rename_options_in_errors,
    require_language_model,
    train,
)
from penchant.recipes.reading import DEFAULT_READING, ReadingConfig


class TuningConfig(Section):
    """Settings of a training stage."""

    training: TrainingConfig = TrainingConfig(learning_rate=1e-5)
    lora: LoraConfig | None = None


@dataclass(frozen=True)
class StageData:
    """The groups of a training stage.

    Attributes:
        train, held_out: files of training and held-out groups.
        reading: how the run reads them.
    """

    train: Path
    held_out: Path | None = None
    reading: ReadingConfig = DEFAULT_READING


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
    data: StageData,
    objective: Mapping[str, Any],
    tuned: TuningConfig,
    *,
    keys: Mapping[str, str],
    online: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of a run that writes to ``folder/run``.

    Args:
        model: folder or hub id to start from.
        objective: the ``objective`` section of a run's configuration.
        keys: the stage's configuration keys for error messages; see `stage_keys`.
        online: the ``sampling`` and ``reward`` sections, for a run on fresh samples.

    Raises:
        ConfigError: the configuration is not valid.
    """
    values = {
        "model": model,
        "data": {
            "train": str(data.train),
            "held_out": str(data.held_out) if data.held_out else None,
            **data.reading.model_dump(),
        },
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
    data: StageData,
    objective: Mapping[str, Any],
    tuned: TuningConfig,
    *,
    keys: Mapping[str, str],
    online: Mapping[str, Any] | None = None,
) -> Path:
    """Train with the configuration of `tuning_run`; an interrupted run resumes.

    Returns:
        The run's folder.
    """
    config = tuning_run(folder, model, data, objective, tuned, keys=keys, online=online)
    with rename_options_in_errors(keys):
        return train(config, resume=(folder / "run" / "run.json").exists())


def full_model_folder(folder: Path, tuned: TuningConfig) -> Path:
    """The folder of a stage's full model, adapter merged, from which later stages train further."""
    return folder / ("merged" if tuned.lora else "run")


def write_full_model(folder: Path, tuned: TuningConfig) -> None:
    """Merge the adapter that `tune` trained into `full_model_folder`; nothing to do where it trained all weights."""
    if tuned.lora is not None and not full_model_folder(folder, tuned).exists():
        merge_adapter(str(folder / "run"), full_model_folder(folder, tuned))


def check_base_models(config: BaseModel) -> None:
    """Refuse a reward model where a recipe's configuration names a language model.

    Raises:
        ModelError: the error names the folder and the kind of model in it.
    """
    parts = [config, *(getattr(config, "models", None) or {}).values()]
    for source in (getattr(part, key, None) for part in parts for key in ("model", "base", "instruct")):
        if isinstance(source, str):
            require_language_model(source)


def check_tuning(
    setting: str,
    objective: Mapping[str, Any],
    tuned: TuningConfig,
    groups: Sequence[PreferenceGroup],
    source: str,
    *,
    scores_fix: str | None = None,
) -> None:
    """Check that a training stage's objective can learn from groups like those the stage will have.

    Args:
        setting: the stage's dotted path in the recipe's configuration.
        groups: examples of the stage's groups; one is enough where all have the same fields.
        source: name of the groups' source in error messages.
        scores_fix: the setting that gives the recipe's groups scores; None where they cannot have any.

    Raises:
        ConfigError: the stage's settings are not valid, or do not train a language model.
        DataError: the groups have nothing that the objective learns from.
    """
    # Nothing is read or written: an error names the recipe's setting, not the run's folder.
    keys = {**stage_keys(setting), "objective.": f"{setting}.objective."}
    run = tuning_run(Path(setting), "unread", StageData(Path("unread.jsonl")), objective, tuned, keys=keys)
    name, needs = run.built_objective.name, run.built_objective.needs
    reason = None
    if needs.head or needs.trains != "log_probs":
        reason = f"{name} does not train a language model"
    elif needs.many_references:
        reason = f"{name} mixes references, and the stage has one, the model it starts from"
    if reason is not None:
        raise ConfigError(reason, where=setting, fix=f"{setting}.objective.name=dpo")
    if needs.scores and all(group.scores is None for group in groups):
        # No stage takes a reward, which a run would be advised to name.
        fixes = [f"learn from preferences: {setting}.objective.name=dpo", *filter(None, [scores_fix])]
        raise DataError(f"{name} learns from scores, and no group has any", where=source, fix=", or ".join(fixes))
    with rename_options_in_errors(keys):
        filter_learnable_groups(run, list(groups), "training", source, [])
