"""The verb `penchant tasks`: multiple-choice tasks by log-probs and by a preference head."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from penchant.cli_output import Count, Json, deliver, tell_all, teller
from penchant.cli_reading import (
    ColumnFlags,
    ComputeFlags,
    EmptyFlags,
    LengthFlags,
    TemplateFlags,
    reading_of,
)
from penchant.errors import ConfigError

Suites = Literal["gpt4all", "race", "glue"]


def tasks(
    model: str,
    *,
    task: Annotated[tuple[str, ...], Parameter(help="NAME=PATH, as in piqa=validation.jsonl; may be repeated.")],
    head: Annotated[bool, Parameter(negative="")] = False,
    suite: Suites | None = None,
    limit: Count | None = None,
    columns: ColumnFlags = ColumnFlags(),
    template: TemplateFlags = TemplateFlags(),
    lengths: LengthFlags = LengthFlags(),
    candidates: EmptyFlags = EmptyFlags(),
    compute: ComputeFlags = ComputeFlags(),
    as_json: Json = False,
) -> None:
    """Measure a model on multiple-choice tasks: accuracy with a 95 % interval, beside chance and what needs no model.

    Parameters
    ----------
    model
        Folder (a run's output, a Hugging Face model, a PEFT adapter) or hub id.
    head
        Choose by the model's preference head too.
    suite
        Also the mean over these tasks.
    limit
        Only the first so many questions of each task.
    """
    from penchant.engine.distribution import destroy_process_group, init_process_group
    from penchant.evaluation.choices import evaluate_choices
    from penchant.evaluation.choices_readers import read_questions
    from penchant.evaluation.choices_scoring import score_tasks
    from penchant.evaluation.choices_suites import SUITES, ChoicesReport, evaluate_suite, require_tasks
    from penchant.evaluation.choices_table import render

    tell = teller(as_json)
    files = named_files(task)
    if suite is not None:
        require_tasks(SUITES[suite], list(files))
    mapping = columns.mapping
    by_task = {
        name: read_questions(name, file, split=columns.split, columns=mapping, limit=limit)
        for name, file in files.items()
    }
    tell_all(tell, [note for part in by_task.values() for note in part.notes])
    reading = reading_of(template, lengths, candidates, compute)
    questions = {name: part.questions for name, part in by_task.items()}
    world = init_process_group()
    try:
        scored = score_tasks(model, questions, world, head=model if head else None, reading=reading, tell=tell)
    finally:
        destroy_process_group(world)
    if not world.is_main:
        return
    reports = tuple(
        evaluate_choices(name, each.questions, left_out={**by_task[name].left_out, **each.left_out})
        for name, each in scored.items()
    )
    report = ChoicesReport(reports, None if suite is None else evaluate_suite(SUITES[suite], reports))
    deliver(report.to_json(), as_json, render(report))


def named_files(arguments: tuple[str, ...]) -> dict[str, str]:
    """Task -> file, from ``NAME=PATH`` arguments.

    Raises:
        ConfigError: no argument, one of another form, or two of one name.
    """
    files: dict[str, str] = {}
    for argument in arguments:
        name, equals, file = argument.partition("=")
        if not (name and equals and file):
            raise ConfigError(
                f"found {argument!r}; expected NAME=PATH", where="--task", fix="--task openbookqa=test.jsonl"
            )
        if name in files:
            raise ConfigError(
                f"two tasks are named {name}", where="--task", fix=f"name the second otherwise: --task {name}_2={file}"
            )
        files[name] = file
    if not files:
        raise ConfigError("no task is named", where="--task", fix="--task openbookqa=test.jsonl")
    return files
