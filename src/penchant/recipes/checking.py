"""Checks of a recipe's configuration before its first stage runs, so that no late stage refuses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from penchant.data.groups import PreferenceGroup
from penchant.engine.model_kind import require_language_model
from penchant.errors import ConfigError, DataError, rename_options_in_errors
from penchant.recipes.tuning import TuningConfig, stage_keys, tuning_run
from penchant.training.needs import usable


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
    run = tuning_run(Path(setting), "unread", Path("unread.jsonl"), None, objective, tuned, keys=keys)
    name, needs = run.method.name, run.method.needs
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
        usable(run, list(groups), "training", source, [])
