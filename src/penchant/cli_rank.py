"""The verbs that give numbers to candidates: score and rank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from penchant.cli_output import Json, Source, deliver, tell_all, teller
from penchant.cli_reading import (
    ComputeFlags,
    LengthFlags,
    MeasuringFlags,
    RowFlags,
    TemplateFlags,
    reading_of,
)


def score(
    data: Source,
    *,
    output: Path,
    model: str | None = None,
    label: int | None = None,
    function: str | None = None,
    judge_url: str | None = None,
    judge_model: str | None = None,
    rows: RowFlags = RowFlags(),
    template: TemplateFlags = TemplateFlags(),
    lengths: LengthFlags = LengthFlags(),
    compute: ComputeFlags = ComputeFlags(),
    as_json: Json = False,
) -> None:
    """Write scores beside the data: every candidate by a reward model, a function of yours, or a judge.

    Interrupted, it goes on where it stopped. Preferences in the data stay what they are.

    Parameters
    ----------
    output
        A new .jsonl file.
    model
        Reward model: folder or hub id of a sequence-classification model.
    label
        Which of the model's outputs is the reward, where it has several.
    function
        As in my_rewards.py:score or package.module:score; called with a prompt and its responses.
    judge_url
        OpenAI-compatible endpoint of a judge that rates from 1 to 10, as in http://localhost:8000/v1.
    judge_model
        The judge's name there.
    """
    from penchant.engine.distribution import local_device
    from penchant.errors import locate_errors
    from penchant.evaluation.rewards import ModelReward, open_reward, reward_from
    from penchant.evaluation.score_file import score_file

    tell = teller(as_json)
    config = reward_from(model=model, label=label, function=function, judge_url=judge_url, judge_model=judge_model)
    dataset = rows.load(data)
    tell_all(tell, dataset.notes)
    reward = open_reward(config, device=local_device(), reading=reading_of(template, lengths, compute=compute))
    with locate_errors(data):
        groups = reward.fitting(dataset.groups, tell) if isinstance(reward, ModelReward) else list(dataset.groups)
    if isinstance(reward, ModelReward):
        tell_all(tell, reward.rounding_notes(groups))
    result = score_file(groups, reward, output)
    deliver(result.to_json(), as_json, result.table)


def rank(
    model: str,
    *,
    data: Source,
    by: Annotated[Literal["head", "log_prob", "mean_log_prob", "reward"], Parameter()] = "mean_log_prob",
    head: str = "preference_head",
    label: int | None = None,
    output: Path | None = None,
    flags: MeasuringFlags = MeasuringFlags(),
    as_json: Json = False,
) -> None:
    """Put each group's candidates in order by a model, and say how often people agree.

    Parameters
    ----------
    model
        Folder or hub id: a language model, or with --by reward a reward model.
    by
        The preference head's reward, the candidate's log-prob (summed or per token), or a reward model's output.
    head
        The head's name, where the folder holds several.
    label
        Which of a reward model's outputs is the reward, where it has several.
    output
        Write a JSON line for each group to this file: order (the best first) and scores.
    """
    from penchant.engine.distribution import World, local_device
    from penchant.errors import ConfigError, locate_errors
    from penchant.evaluation.ranking import rank as rank_groups
    from penchant.evaluation.ranking import rank_by_reward
    from penchant.evaluation.rewards import ModelReward, open_reward, reward_from

    if flags.learn == "all" and by in ("head", "reward"):
        raise ConfigError(
            f"--learn all counts log-probs, and --by {by} reads the last token",
            fix="leave --learn out, or rank by log-probs: --by mean_log_prob",
        )
    tell = teller(as_json)
    dataset, reading = flags.load(data), flags.reading
    tell_all(tell, dataset.notes)
    with locate_errors(data):
        if by == "reward":
            reward = open_reward(reward_from(model=model, label=label), device=local_device(), reading=reading)
            groups = list(dataset.groups)
            if isinstance(reward, ModelReward):
                groups = reward.comparable(groups, tell)
                tell_all(tell, reward.rounding_notes(groups))
            ranking = rank_by_reward(groups, reward)
        else:
            ranking = rank_groups(
                model, dataset.groups, World(0, 1, local_device()), by=by, reading=reading, head=head, tell=tell
            )
    if output is not None:
        ranking.write(output)
    deliver(ranking.to_json(), as_json, ranking.table)
