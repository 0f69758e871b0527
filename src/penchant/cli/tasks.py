"""The verbs `penchant tasks` (multiple-choice tasks) and `penchant tool-calls` (a model's function calls)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from penchant.cli.flags import COLUMNS, COMPUTE, LENGTHS, TEMPLATE, ReadingFlags, available_flags
from penchant.cli.output import Count, Device, Json, log_notes, print_result
from penchant.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Group

    from penchant.data.tokenized import Ids
    from penchant.evaluation.tool_calls.latency import LatencyReport
    from penchant.evaluation.tool_calls.leaderboard import LeaderboardScore
    from penchant.evaluation.tool_calls.suite import ToolReport


def tool_calls(
    model: str,
    *,
    data: Path,
    style: Literal["messages", "native", "signatures"] = "messages",
    category: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    limit: Count | None = None,
    constrained: Annotated[bool, Parameter(negative="")] = False,
    max_new_tokens: Count = 256,
    timed: Count = 20,
    answers: Path | None = None,
    flags: Annotated[ReadingFlags, available_flags(*TEMPLATE)] = ReadingFlags(),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model's function calls: accuracy by category, and time and memory per answer on this machine.

    Questions of several turns (categories multi_turn_*) need the package bfcl-eval: their functions are its programs.

    Parameters
    ----------
    model
        Folder (a run's output, a Hugging Face model, a PEFT adapter), hub id or GGUF file.
    data
        Folder of the Berkeley Function Calling Leaderboard's files, BFCL_v*_CATEGORY.json (or another kind of data
        file, compressed or not), with possible_answer/.
    style
        Form of the functions in the prompt: a system message, the chat template's tools, or signatures in plain text.
    category
        Category to measure; repeatable; all if not given.
    limit
        Number of questions per category, from the start of each file.
    constrained
        Constrain answers to calls of the offered functions with arguments of the right types, or to no call.
    max_new_tokens
        Maximum tokens of an answer.
    timed
        Number of questions, evenly spaced over all, for the measurement of latency in a separate process.
    answers
        Output file with a JSON line per answer.
    """
    from penchant.data.tokenization import tokenize_prompts
    from penchant.engine.device import local_device, use_device
    from penchant.evaluation.tool_calls.conversations import answer_all, first_question
    from penchant.evaluation.tool_calls.latency import LatencySettings, measure_latency
    from penchant.evaluation.tool_calls.multi_turn import MultiTurnQuestion, read_all
    from penchant.evaluation.tool_calls.questions import evenly_spaced, select_questions
    from penchant.evaluation.tool_calls.styles import STYLES
    from penchant.evaluation.tool_calls.suite import ToolReport, write_answers
    from penchant.models.gguf.reading import is_gguf
    from penchant.models.loading import load_model, load_tokenizer

    use_device(device)
    read, left_out = read_all(data)
    for name in category:
        if name in left_out:
            raise ConfigError(f"{name} is left out: {left_out[name]}", where=str(data), fix="name another category")
    log_notes(f"{name} is left out: {reason}" for name, reason in left_out.items())
    questions = select_questions(read, category, limit)
    tokenizer = load_tokenizer(model, chat_template=flags.chat_template)
    setting = LatencySettings(
        model,
        style,
        device=str(local_device()),
        max_new_tokens=max_new_tokens,
        constrained=constrained,
        chat_template=flags.chat_template,
        rendering=flags.rendering,
    )
    # The model has no name here, so that its memory is free before the other process loads it.
    answered_questions = answer_all(
        load_model(model).to(local_device()),
        tokenizer,
        questions,
        STYLES[style],
        max_new_tokens=max_new_tokens,
        constrained=constrained,
        rendering=flags.rendering,
    )
    if answers is not None:
        write_answers(answered_questions, answers)
    first_questions = [
        first_question(question, STYLES[style]) if isinstance(question, MultiTurnQuestion) else question
        for question in questions
    ]
    timed_questions = evenly_spaced(first_questions, timed)
    edge = measure_latency(setting, timed_questions)
    llama_cpp = None
    if is_gguf(model) and not constrained:
        prompts = tokenize_prompts(
            [STYLES[style].ask(question) for question in timed_questions], tokenizer, flags.rendering
        )
        llama_cpp = _llama_cpp_latency(model, prompts, max_new_tokens)
    report = ToolReport.from_answers(answered_questions)
    settings = {"style": style, "constrained": constrained, "left_out": left_out}
    latencies = {"edge": edge.to_json(), "llama_cpp": llama_cpp and llama_cpp.to_json()}
    view = _report_view(report, {"": edge} | ({} if llama_cpp is None else {"llama.cpp: ": llama_cpp}))
    print_result(report.to_json() | latencies | settings, as_json, view)


def _llama_cpp_latency(file: str, prompts: Sequence[Ids], max_new_tokens: int) -> LatencyReport | None:
    """Latency and memory of llama.cpp; None, with a notice, where it is not installed."""
    from importlib.util import find_spec

    from penchant.evaluation.tool_calls.llama_cpp import answer_with_llama_cpp

    if find_spec("xllamacpp") is None:
        log_notes(["llama.cpp's own time and memory are not measured: python -m pip install 'penchant[llama-cpp]'"])
        return None
    return answer_with_llama_cpp(file, prompts, max_new_tokens).report


def _report_view(report: ToolReport, latencies: Mapping[str, LatencyReport]) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from penchant.evaluation.report import show

    table = Table("category", "questions", "right", title="function calls, with 95 % intervals")
    for name, share in report.categories.items():
        table.add_row(name, str(share.n), show(share.to_json()))
    table.add_section()
    for name, share in (("all", report.overall), ("mean of categories", report.macro)):
        table.add_row(name, str(share.n), show(share.to_json()))
    faults = ", ".join(f"{count} {fault}" for fault, count in report.faults.items()) or "none"
    return Group(
        table,
        Text(f"wrong: {faults}"),
        *([] if report.leaderboard is None else [Text(_leaderboard_line(report.leaderboard))]),
        Text(f"cut by the limit of tokens: {report.truncated} of {report.overall.n}"),
        *(Text(f"{name}{line}") for name, latency in latencies.items() for line in _latency_lines(latency)),
    )


def _latency_lines(latency: LatencyReport) -> tuple[str, str]:
    middle, late = latency.seconds
    weights, peak, extra = (n / 2**20 for n in (latency.weight_bytes, latency.peak_bytes, latency.above_bytes))
    return (
        f"an answer alone: {middle:.2f} s (95th percentile {late:.2f} s), {latency.tokens_per_second:.0f} tokens/s",
        f"weights {weights:.0f} MiB, peak memory {peak:.0f} MiB, {extra:.0f} MiB above the process without it",
    )


def _leaderboard_line(score: LeaderboardScore) -> str:
    from penchant.evaluation.report import show

    line = f"the leaderboard's overall score: {show(score.overall.to_json())}"
    if not score.missing:
        return line
    return (
        f"{line}, where what is not measured counts as 0, {1 - score.measured_weight:.0%} of its weight "
        f"({', '.join(score.missing)}); {score.of_measured:.3f} of what is measured"
    )


Suites = Literal["gpt4all", "race", "glue"]


def tasks(
    model: str,
    *,
    task: Annotated[tuple[str, ...], Parameter(help="NAME=PATH, as in piqa=validation.jsonl; repeatable.")],
    head: Annotated[bool, Parameter(negative="")] = False,
    suite: Suites | None = None,
    limit: Count | None = None,
    flags: Annotated[ReadingFlags, available_flags(*COLUMNS, *TEMPLATE, *LENGTHS, "empty", *COMPUTE)] = ReadingFlags(),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model on multiple-choice tasks: accuracy with a 95 % interval, and baselines without a model.

    Parameters
    ----------
    model
        Folder (a run's output, a Hugging Face model, a PEFT adapter) or hub id.
    head
        Also choose answers by the model's preference head.
    suite
        Also report the mean over the tasks of this suite.
    limit
        Number of questions per task, from the start of each file.
    """
    from penchant.engine.device import use_device
    from penchant.engine.distributed import destroy_process_group, init_process_group
    from penchant.evaluation.choices import evaluate_choices
    from penchant.evaluation.choices_readers import read_questions
    from penchant.evaluation.choices_scoring import score_tasks
    from penchant.evaluation.choices_suites import SUITES, ChoicesReport, evaluate_suite, render, require_tasks

    use_device(device)
    files = named_files(task)
    if suite is not None:
        require_tasks(SUITES[suite], list(files))
    mapping = flags.mapping
    by_task = {
        name: read_questions(name, file, split=flags.split, columns=mapping, limit=limit)
        for name, file in files.items()
    }
    log_notes([note for part in by_task.values() for note in part.notes])
    questions = {name: part.questions for name, part in by_task.items()}
    world = init_process_group()
    try:
        scored = score_tasks(model, questions, world, head=model if head else None, reading=flags.reading)
    finally:
        destroy_process_group(world)
    if not world.is_main:
        return
    reports = tuple(
        evaluate_choices(name, scores.questions, left_out={**by_task[name].left_out, **scores.left_out})
        for name, scores in scored.items()
    )
    report = ChoicesReport(reports, None if suite is None else evaluate_suite(SUITES[suite], reports))
    print_result(report.to_json(), as_json, render(report))


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
        raise ConfigError("no task is given", where="--task", fix="--task openbookqa=test.jsonl")
    return files
