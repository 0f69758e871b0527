"""The last stage: every model on held-out functions, differences between paths, and latency in float32 and int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penchant.engine.distribution import local_device
from penchant.engine.loading import load_model, load_tokenizer
from penchant.engine.quantization import quantize_int8
from penchant.evaluation.statistics import Estimate, Floats
from penchant.evaluation.tool_calls.edge import LatencySettings, measure_latency
from penchant.evaluation.tool_calls.questions import ToolQuestion, evenly_spaced, read_bfcl
from penchant.evaluation.tool_calls.styles import STYLES
from penchant.evaluation.tool_calls.suite import ToolReport, answer_questions, write_answers
from penchant.recipes.comparing import mean_over_questions, paired_differences
from penchant.recipes.stages import StageResult
from penchant.recipes.tool_calling.config import ToolCallingConfig

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
    style, tokenizer = STYLES[config.style], load_tokenizer(path)
    max_new_tokens, constrained, timed = config.answer_tokens, config.constrained, evenly_spaced(test, config.timed)
    quantized = quantize_int8(load_model(path))
    judged_answers = answer_questions(
        quantized, tokenizer, test, style, max_new_tokens=max_new_tokens, constrained=constrained
    )
    reports = {}
    for name, right in (("float32", in_float32), ("int8", ToolReport.from_answers(judged_answers).overall)):
        setting = LatencySettings(path, config.style, "cpu", name == "int8", max_new_tokens, constrained)
        reports[name] = {"right": right.to_json(), **measure_latency(setting, timed).to_json()}
    return reports
