"""The verbs that give numbers to candidates: score and rank.

Also in this module:

- The verb `penchant generate`: responses to prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from penchant.cli.flags import ComputeFlags, LengthFlags, MeasuringFlags, RowFlags, TemplateFlags, reading_of
from penchant.cli.output import Count, Json, Seed, Source, log_notes, print_result
from penchant.errors import ConfigError


def generate(
    model: str,
    prompts: str,
    *,
    samples: Count = 1,
    max_new_tokens: Count | None = None,
    temperature: Annotated[float, Parameter(validator=Number(gte=0))] = 1.0,
    top_p: Annotated[float, Parameter(validator=Number(gt=0, lte=1))] = 1.0,
    seed: Seed = 0,
    batch_size: Count = 32,
    limit: Count | None = None,
    best_of: Count | None = None,
    head: str = "preference_head",
    rows: RowFlags = RowFlags(),
    template: TemplateFlags = TemplateFlags(),
    lengths: LengthFlags = LengthFlags(),
    as_json: Json = False,
) -> None:
    """Sample responses to prompts.

    Parameters
    ----------
    model
        Folder, hub id or GGUF file.
    prompts
        A preference file whose prompts are used, or a prompt's text.
    samples
        Responses for each prompt.
    max_new_tokens
        Tokens of the longest response; 128, or what the model's context has room for, if not given.
    temperature
        0 takes the likeliest token each time.
    top_p
        Draw from the smallest set of tokens with this much probability.
    seed
        The same seed gives the same responses.
    batch_size
        Prompts at a time.
    limit
        Only the first so many prompts.
    best_of
        Draw so many responses to each prompt, and let the model's preference head choose one.
    head
        The head's name, where the folder holds several.
    """
    from penchant.evaluation.answering import (
        Sampling,
        answer,
        distinct_prompts,
        fit_prompts,
        names_a_file,
        typed_rendering,
    )

    if best_of is not None and samples > 1:
        raise ConfigError("--samples and --best-of are both given", fix="give one of them")
    reading = reading_of(template, lengths)
    if names_a_file(prompts):
        dataset = rows.load(prompts)
        log_notes(dataset.notes)
        texts = distinct_prompts(dataset.groups)[:limit]
    else:
        texts, reading = [prompts], typed_rendering(model, prompts, reading)
    reading = reading.on_one_day(model)
    fitted = fit_prompts(model, texts, max_new_tokens, reading)
    draws = best_of or samples
    sampling = Sampling(draws, fitted.new_tokens, temperature, top_p, seed, batch_size)
    if best_of is not None:
        from penchant.evaluation.ranking import answer_best_of

        best = answer_best_of(model, fitted.prompts, sampling, head=head, reading=reading, ids=fitted.ids)
        print_result(best.to_json(), as_json, best.table)
        return
    answers = answer(model, fitted.prompts, sampling, reading, fitted.ids)
    print_result(answers.to_json(), as_json, answers.table)


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
    from penchant.engine.distributed import local_device
    from penchant.errors import locate_errors
    from penchant.evaluation.rewards import ModelReward, open_reward, reward_from
    from penchant.evaluation.score_file import score_file

    config = reward_from(model=model, label=label, function=function, judge_url=judge_url, judge_model=judge_model)
    dataset = rows.load(data)
    log_notes(dataset.notes)
    reward = open_reward(config, device=local_device(), reading=reading_of(template, lengths, compute=compute))
    with locate_errors(data):
        groups = list(dataset.groups)
        if isinstance(reward, ModelReward):
            groups, dropped = reward.fitting(groups)
            log_notes([*dropped, *reward.rounding_notes(groups)])
    result = score_file(groups, reward, output)
    print_result(result.to_json(), as_json, result.table)


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
    from penchant.engine.distributed import World, local_device
    from penchant.errors import ConfigError, locate_errors
    from penchant.evaluation.ranking import rank as rank_groups
    from penchant.evaluation.ranking import rank_by_reward
    from penchant.evaluation.rewards import ModelReward, open_reward, reward_from

    if flags.learn == "all" and by in ("head", "reward"):
        raise ConfigError(
            f"--learn all counts log-probs, and --by {by} reads the last token",
            fix="leave --learn out, or rank by log-probs: --by mean_log_prob",
        )
    dataset, reading = flags.load(data), flags.reading
    log_notes(dataset.notes)
    with locate_errors(data):
        if by == "reward":
            reward = open_reward(reward_from(model=model, label=label), device=local_device(), reading=reading)
            groups = list(dataset.groups)
            if isinstance(reward, ModelReward):
                groups, dropped = reward.comparable(groups)
                log_notes([*dropped, *reward.rounding_notes(groups)])
            ranking = rank_by_reward(groups, reward)
        else:
            ranking = rank_groups(model, dataset.groups, World(0, 1, local_device()), by=by, reading=reading, head=head)
    if output is not None:
        ranking.write(output)
    print_result(ranking.to_json(), as_json, ranking.table)
