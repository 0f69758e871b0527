"""What a recipe's stages would refuse, refused before the first of them runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from penchant.data.groups import PreferenceGroup
from penchant.engine.model_kind import require_language_model
from penchant.errors import ConfigError, DataError, rename_options_in_errors
from penchant.recipes.tuning import TunedConfig, stage_keys, tuning_run
from penchant.training.needs import usable


def check_base_models(config: BaseModel) -> None:
    """Refuse a reward model among the language models a recipe's configuration names.

    Raises:
        ModelError: names the folder and what it holds.
    """
    parts = [config, *(getattr(config, "models", None) or {}).values()]
    for source in (getattr(part, key, None) for part in parts for key in ("model", "base", "instruct")):
        if isinstance(source, str):
            require_language_model(source)


def check_tuning(
    setting: str,
    objective: Mapping[str, Any],
    tuned: TunedConfig,
    groups: Sequence[PreferenceGroup],
    source: str,
    *,
    scores_fix: str | None = None,
) -> None:
    """Build the objective and hold it against groups as the stage will have them.

    Args:
        setting: the stage's dotted path in the recipe's configuration.
        groups: one will do, where all are alike.
        source: where they are from, for people.
        scores_fix: what gives the recipe's groups scores; None where they cannot have any.

    Raises:
        ConfigError: the stage's settings are not valid, or do not tune a model that answers.
        DataError: there is nothing in the groups that the objective learns from.
    """
    # Nothing is read or written: a mistake is told where the user made it, not where the run would be.
    keys = {**stage_keys(setting), "objective.": f"{setting}.objective."}
    run = tuning_run(Path(setting), "unread", Path("unread.jsonl"), None, objective, tuned, keys=keys)
    name, needs = run.method.name, run.method.needs
    reason = None
    if needs.head or needs.trains != "log_probs":
        reason = f"{name} does not tune what answers"
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
