"""The verbs that give numbers to candidates, `score` and `rank`, and the verb that writes responses, `generate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from penchant.cli.flags import ALL, COMPUTE, LENGTHS, ROWS, TEMPLATE, ReadingFlags, available_flags
from penchant.cli.output import Count, Device, Json, Seed, Source, log_notes, print_result
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
    head: str | None = None,
    reward: str | None = None,
    label: int | None = None,
    flags: Annotated[ReadingFlags, available_flags(*ROWS, *TEMPLATE, *LENGTHS)] = ReadingFlags(),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Sample responses to prompts.

    Parameters
    ----------
    model
        Folder, hub id or GGUF file.
    prompts
        Preference file whose prompts are used, or the text of a prompt.
    samples
        Responses per prompt.
    max_new_tokens
        Maximum tokens of a response; if not given 128, or as many as fit into the model's context.
    temperature
        Sampling temperature; 0 always takes the likeliest token.
    top_p
        Sample from the smallest set of likeliest tokens with this probability.
    seed
        Seed of sampling; the same seed gives the same responses.
    batch_size
        Prompts per batch.
    limit
        Number of prompts to use, from the start of the file.
    best_of
        Sample this many responses per prompt and keep the one with the highest reward, by the model's preference head
        or by --reward.
    head
        Name of the preference head, where the model has several; preference_head if not given.
    reward
        Folder or hub id of a reward model that chooses the best response instead of a preference head.
    label
        Index of the output that is the reward, for a reward model with several outputs.
    """
    from penchant.engine.device import local_device, use_device
    from penchant.evaluation.answering import (
        Sampling,
        answer,
        distinct_prompts,
        fit_prompts,
        names_a_file,
        typed_rendering,
    )
    from penchant.evaluation.best_of import best_by_head, best_by_reward
    from penchant.evaluation.rewards import open_reward, reward_from
    from penchant.models.preference_head import NAME

    _check_best_of(samples, best_of, head, reward, label)
    use_device(device)
    reading = flags.reading
    if names_a_file(prompts):
        dataset = flags.load(prompts)
        log_notes(dataset.notes)
        texts = distinct_prompts(dataset.groups)[:limit]
    else:
        texts, reading = [prompts], typed_rendering(model, prompts, reading)
    chooser = None
    if reward is not None:
        # It reads with its own template and context.
        of_reward = flags.reading if names_a_file(prompts) else typed_rendering(reward, prompts, flags.reading)
        of_reward = replace(of_reward, chat_template=None, max_length=None)
        chooser = open_reward(reward_from(model=reward, label=label), device=local_device(), reading=of_reward)
    reading = reading.on_one_day(model)
    fit = fit_prompts(model, texts, max_new_tokens, reading)
    draws = best_of or samples
    sampling = Sampling(draws, fit.new_tokens, temperature, top_p, seed, batch_size)
    if best_of is not None:
        if chooser is not None:
            best = best_by_reward(model, fit.prompts, sampling, chooser, reading, fit.ids)
        else:
            best = best_by_head(model, fit.prompts, sampling, head=head or NAME, reading=reading, ids=fit.ids)
        print_result(best.to_json(), as_json, best.table)
        return
    answers = answer(model, fit.prompts, sampling, reading, fit.ids)
    print_result(answers.to_json(), as_json, answers.table)


def _check_best_of(samples: int, best_of: int | None, head: str | None, reward: str | None, label: int | None) -> None:
    """Refuse flags of `generate` that contradict each other or have no effect."""
    if best_of is not None and samples > 1:
        raise ConfigError("--samples and --best-of are both given", fix="give one of them")
    if reward is not None and head is not None:
        raise ConfigError("--head and --reward are both given", fix="give one of them")
    for flag, value, other_value, example in (
        ("--reward", reward, best_of, "--best-of 8"),
        ("--head", head, best_of, "--best-of 8"),
        ("--label", label, reward, "--reward MODEL"),
    ):
        if value is not None and other_value is None:
            raise ConfigError(
                f"{flag} is given without {example.split()[0]}, so it has no effect", fix=f"add {example}"
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
    flags: Annotated[ReadingFlags, available_flags(*ROWS, *TEMPLATE, *LENGTHS, *COMPUTE)] = ReadingFlags(),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write the data with a score of every candidate, by a reward model, a Python function, or a judge.

    Re-running resumes where it stopped. Preferences in the data stay as they are.

    Parameters
    ----------
    output
        Output file, a new .jsonl file.
    model
        Folder or hub id of a reward model (a sequence-classification model).
    label
        Index of the output that is the reward, for a model with several outputs.
    function
        Function as in my_rewards.py:score or package.module:score; called with a prompt and its responses.
    judge_url
        OpenAI-compatible endpoint of a judge that rates from 1 to 10, as in http://localhost:8000/v1.
    judge_model
        Name of the judge's model at that endpoint.
    """
    from penchant.engine.device import local_device, use_device
    from penchant.errors import locate_errors
    from penchant.evaluation.rewards import ModelReward, open_reward, reward_from
    from penchant.evaluation.score_file import score_file

    use_device(device)
    config = reward_from(model=model, label=label, function=function, judge_url=judge_url, judge_model=judge_model)
    dataset = flags.load(data)
    log_notes(dataset.notes)
    reward = open_reward(config, device=local_device(), reading=flags.reading)
    with locate_errors(data):
        groups = list(dataset.groups)
        if isinstance(reward, ModelReward):
            groups, notes = reward.readable_groups(groups)
            log_notes([*notes, *reward.rounding_notes(groups)])
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
    flags: Annotated[ReadingFlags, available_flags(*ALL)] = ReadingFlags(),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Rank each group's candidates by a model, and report how often the preferences agree.

    Parameters
    ----------
    model
        Folder or hub id: a language model, or with --by reward a reward model.
    by
        Value to rank by: the preference head's reward, the summed or mean log-prob, or a reward model's output.
    head
        Name of the preference head, where the model has several.
    label
        Index of the output that is the reward, for a reward model with several outputs.
    output
        Output file with a JSON line per group: order (the best first) and scores.
    """
    from penchant.engine.device import local_device, use_device
    from penchant.engine.distributed import World
    from penchant.errors import ConfigError, locate_errors
    from penchant.evaluation.ranking import rank as rank_groups
    from penchant.evaluation.ranking import rank_by_reward
    from penchant.evaluation.rewards import ModelReward, open_reward, reward_from

    if flags.learn == "all" and by in ("head", "reward"):
        raise ConfigError(
            f"--learn all counts log-probs, and --by {by} reads the last token",
            fix="leave --learn out, or rank by log-probs: --by mean_log_prob",
        )
    use_device(device)
    dataset, reading = flags.load(data), flags.reading
    log_notes(dataset.notes)
    with locate_errors(data):
        if by == "reward":
            reward = open_reward(reward_from(model=model, label=label), device=local_device(), reading=reading)
            groups = list(dataset.groups)
            if isinstance(reward, ModelReward):
                groups, notes = reward.comparable_groups(groups)
                log_notes([*notes, *reward.rounding_notes(groups)])
            ranking = rank_by_reward(groups, reward)
        else:
            ranking = rank_groups(model, dataset.groups, World.single(), by=by, reading=reading, head=head)
    if output is not None:
        ranking.write(output)
    print_result(ranking.to_json(), as_json, ranking.table)
