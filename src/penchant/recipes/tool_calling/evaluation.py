"""The last stage: every model on held-out functions, differences between paths, latency, and the report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from penchant.api import (
    STYLES,
    Estimate,
    Floats,
    LatencySettings,
    RunReport,
    Table,
    ToolQuestion,
    ToolReport,
    answer_questions,
    answer_with_llama_cpp,
    evenly_spaced,
    export_gguf,
    load_model,
    load_tokenizer,
    local_device,
    measure_latency,
    proportion,
    quantize_int8,
    read_bfcl,
    show,
    tokenize_prompts,
    write_answers,
)
from penchant.recipes.results import estimate_table, mean_over_questions, paired_differences, tool_calling_headline
from penchant.recipes.stages import StageResult
from penchant.recipes.tool_calling.config import ToolCallingConfig


def build_report(results: Mapping[str, StageResult]) -> RunReport:
    """The report page of the stages' results."""
    data, evaluation = results["data"], results["evaluation"]
    return RunReport(
        title="Tool calling",
        summary=[
            tool_calling_headline(results),
            *((f"questions, {part}", str(sum(counts.values()))) for part, counts in data["questions"].items()),
            ("variants of training questions", str(data["variants"])),
            ("steps of trajectories", str(data["trajectories"])),
            ("left out: no right answer can be written", str(data["no right answer"])),
            *((f"{name}, left out", reason) for name, reason in data["left_out"].items()),
            *_pairs(results),
        ],
        tables=[
            estimate_table(
                "Right calls on functions that were never trained on",
                evaluation["models"],
                "By the Berkeley leaderboard's rules. 95 % intervals over seeds and questions; for the base over "
                "questions.",
            ),
            *(_added(baseline, d) for baseline, d in evaluation["differences"].items()),
        ],
        details=[_faults(evaluation["faults"], evaluation["cut"]), _latencies(evaluation["edge"])],
    )


def _pairs(results: Mapping[str, StageResult]) -> list[tuple[str, str]]:
    if "pairs" not in results:
        return []
    return [
        ("groups of right and wrong answers", str(results["pairs"]["groups"])),
        *((f"rejected: {kind}", str(n)) for kind, n in results["pairs"]["rejected"].items()),
        ("read by people", ", ".join(f"{name} {n}" for name, n in results["review"]["verdicts"].items())),
        ("right answer predicted from words alone in", show(results["review"]["audit"]["words"])),
    ]


def _added(baseline: str, differences: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    names = next(iter(differences.values()))
    rows = {name: [difference[name] for difference in differences.values()] for name in names}
    return Table(
        f"Compared with {baseline}",
        ("", *(column for name in differences for column in (name, ""))),
        [
            (name, *(cell for difference in row for cell in (show(difference), difference["outcome"])))
            for name, row in rows.items()
        ],
        "Paired over seeds and questions; the outcome is corrected (Holm) for the number of paths.",
    )


def _faults(faults: Mapping[str, Mapping[str, int]], truncated: Mapping[str, int]) -> Table:
    kinds = list(dict.fromkeys(kind for counts in faults.values() for kind in counts))
    return Table(
        "Faults of wrong answers",
        ("", *kinds, "cut by the limit"),
        [
            (name, *(str(counts.get(kind, 0)) for kind in kinds), str(truncated[name]))
            for name, counts in faults.items()
        ],
        "For the first seed's model. The last column counts answers that the token limit cut, right or wrong.",
    )


def _latencies(edge: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        (
            f"{name}, {kind}",
            show(row["right"]),
            f"{row['weight_bytes'] / 2**20:.1f} MiB",
            f"{row['seconds']['median'] * 1000:.0f} ms",
            f"{row['seconds']['p95'] * 1000:.0f} ms",
            f"{row['tokens_per_second']:.0f}",
            f"{row['peak_bytes'] / 2**20:.0f} MiB",
            f"{row['above_bytes'] / 2**20:.0f} MiB",
        )
        for name, kinds in edge.items()
        for kind, row in kinds.items()
    ]
    costs = ("median latency", "95th percentile", "tokens per second", "peak memory", "above the empty process")
    return Table(
        "Latency and memory on this machine",
        ("", "right calls", "weights", *costs),
        rows,
        "For the first seed's model, one question at a time, in a subprocess. The memory above the empty process "
        "includes libraries that load with the first model.",
    )


ALL, CALLS_DUE = "all", "calls due"


@dataclass(frozen=True)
class Row:
    """A path, or the base, with its models.

    Attributes:
        folders: the path's final model for every seed; a single one for the base.
    """

    name: str
    folders: tuple[str, ...]


def evaluate(config: ToolCallingConfig, rows: Sequence[Row], folder: Path) -> StageResult:
    """Shares of right answers by category, differences from the base and from the first path, and latencies."""
    test, _ = read_bfcl(folder.parent / "data" / "test")
    style = STYLES[config.style]
    right: dict[str, Floats] = {}
    faults: dict[str, dict[str, int]] = {}
    truncated: dict[str, int] = {}
    edge: dict[str, dict[str, Any]] = {}
    for row in rows:
        tables = []
        for number, path in enumerate(row.folders):
            model = load_model(path).to(local_device())
            tokenizer = load_tokenizer(path, chat_template=config.data.chat_template)
            judged_answers = answer_questions(
                model,
                tokenizer,
                test,
                style,
                max_new_tokens=config.answer_tokens,
                constrained=config.constrained,
                rendering=config.data.rendering("last"),
            )
            write_answers(judged_answers, folder / f"{row.name}-{config.seeds[number]}.jsonl")
            tables.append([float(judged.fault is None) for judged in judged_answers])
            if number == 0:
                report = ToolReport.from_answers(judged_answers)
                faults[row.name], truncated[row.name] = dict(report.faults), report.truncated
                edge[row.name] = _latency_reports(config, path, test, report.overall)
        right[row.name] = np.array(tables)
    return {
        "models": {name: _by_category(table, test) for name, table in right.items()},
        "differences": {
            baseline: {name: _differences(right, baseline, numbers) for name, numbers in _subsets(test).items()}
            for baseline in ("base", next(iter(config.paths)))
        },
        "faults": faults,
        "cut": truncated,
        "edge": edge,
    }


def _by_category(right: Floats, test: Sequence[ToolQuestion]) -> dict[str, Any]:
    categories = sorted({question.category for question in test})
    columns = {name: [n for n, question in enumerate(test) if question.category == name] for name in categories}
    return {
        name: mean_over_questions(right[:, numbers]).to_json() for name, numbers in (_subsets(test) | columns).items()
    }


def _subsets(test: Sequence[ToolQuestion]) -> dict[str, list[int]]:
    """The indices of all questions, and of those with accepted calls: a model that never calls is right on the rest."""
    indices = range(len(test))
    return {ALL: list(indices), CALLS_DUE: [n for n in indices if test[n].accepted]}


def _differences(right: Mapping[str, Floats], baseline: str, numbers: Sequence[int]) -> dict[str, Any]:
    """The differences of every other path from the baseline on the questions with these indices."""
    other_paths = [name for name in right if name not in (baseline, "base")]
    return paired_differences({name: (right[baseline][:, numbers], right[name][:, numbers]) for name in other_paths})


def _latency_reports(
    config: ToolCallingConfig, path: str, test: Sequence[ToolQuestion], in_float32: Estimate
) -> dict[str, Any]:
    """The share of right answers, latency and memory on the CPU, in float32 and with int8 weights."""
    template, rendering = config.data.chat_template, config.data.rendering("last")
    max_new_tokens, constrained, timed = config.answer_tokens, config.constrained, evenly_spaced(test, config.timed)
    judged_answers = answer_questions(
        quantize_int8(load_model(path)),
        load_tokenizer(path, chat_template=template),
        test,
        STYLES[config.style],
        max_new_tokens=max_new_tokens,
        constrained=constrained,
        rendering=rendering,
    )
    reports = {}
    for name, right in (("float32", in_float32), ("int8", ToolReport.from_answers(judged_answers).overall)):
        setting = LatencySettings(
            path, config.style, "cpu", name == "int8", max_new_tokens, constrained, template, rendering
        )
        reports[name] = {"right": right.to_json(), **measure_latency(setting, timed).to_json()}
    if config.llama_cpp:
        reports["q8_0, llama.cpp"] = _llama_cpp_report(config, path, test)
    return reports


def _llama_cpp_report(config: ToolCallingConfig, path: str, test: Sequence[ToolQuestion]) -> dict[str, Any]:
    """The share of right answers, latency and memory of the model as a GGUF file in llama.cpp, over all questions."""
    tokenizer, style = load_tokenizer(path, chat_template=config.data.chat_template), STYLES[config.style]
    prompts = tokenize_prompts([style.ask(question) for question in test], tokenizer, config.data.rendering("last"))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        export_gguf(path, file, "q8_0")
        answers = answer_with_llama_cpp(str(file), prompts, config.answer_tokens)
    right = [
        question.fault(style.read(text, question)) is None for question, text in zip(test, answers.texts, strict=True)
    ]
    return {"right": proportion(sum(right), len(right)).to_json(), **answers.report.to_json()}
