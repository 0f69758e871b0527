"""What `penchant evaluate` does: a language model by its log-probs, a reward model by its rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from penchant.data.groups import PreferenceGroup
from penchant.engine.distribution import World
from penchant.engine.model_kind import ModelKind, model_kind
from penchant.errors import ConfigError
from penchant.evaluation.held_out import Reading, score
from penchant.evaluation.preferences import PreferenceReport, evaluate_preferences, write_per_example
from penchant.evaluation.reward_preferences import evaluate_rewards, score_rewards, write_rewards

BETA = 0.1
"""Scale of the implicit reward in `calibration`, where none is given."""


def measure_model(
    model: str,
    groups: Sequence[PreferenceGroup],
    world: World,
    *,
    reference: str | None = None,
    beta: float | None = None,
    reading: Reading,
    per_example: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> PreferenceReport | None:
    """Held-out metrics of a language model or a reward model; None on other processes than the main one.

    Args:
        model: folder, hub id or GGUF file.
        reference, beta: of a language model's implicit rewards.
        per_example: a file for a JSON line a group.

    Raises:
        PenchantError: a model or the data is at fault; or a reward model is given what belongs to log-probs.
    """
    kind = model_kind(model)
    if kind.is_reward_model:
        _refuse_implicit(model, kind, reference, beta, reading)
        rewarded = score_rewards(model, groups, world, reading=reading, tell=tell)
        if world.is_main and per_example is not None:
            write_rewards(rewarded, per_example)
        return evaluate_rewards(rewarded) if world.is_main else None
    for head in kind.heads:
        flag = "" if head == "preference_head" else f" --head {head}"
        tell(
            f"the folder holds a preference head, {head}; the language model is measured here, and the head by: "
            f"penchant rank {model} --data FILE --by head{flag}"
        )
    scored = score(model, groups, world, reference=reference, reading=reading, tell=tell)
    if world.is_main and per_example is not None:
        write_per_example(scored, per_example)
    return evaluate_preferences(scored, beta=beta or BETA) if world.is_main else None


def _refuse_implicit(model: str, kind: ModelKind, reference: str | None, beta: float | None, reading: Reading) -> None:
    without_effect = {
        "--reference": reference is not None,
        "--beta": beta is not None,
        "--learn all": reading.rendering.learn == "all",
    }
    flags = " and ".join(flag for flag, present in without_effect.items() if present)
    if flags:
        raise ConfigError(
            f"{flags}: this is a reward model ({kind.architecture}), whose rewards are measured as they are; a "
            "reference, beta and turns belong to a language model's log-probs",
            where=model,
            fix=f"leave {flags} out",
        )
