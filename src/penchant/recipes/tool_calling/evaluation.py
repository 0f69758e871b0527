"""The last stage: every model on held-out functions, what each path adds, and what an answer costs when quantised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penchant.engine.distribution import local_device
from penchant.engine.loading import load_model, load_tokenizer
from penchant.engine.quantization import eight_bits
from penchant.evaluation.statistics import Estimate, Floats
from penchant.evaluation.tool_calls.edge import Setting, measure_edge
from penchant.evaluation.tool_calls.questions import ToolQuestion, read_bfcl, spread
from penchant.evaluation.tool_calls.styles import STYLES
from penchant.evaluation.tool_calls.suite import ToolReport, answer_questions, write_answers
from penchant.recipes.comparing import estimate_over_seeds, paired_differences
from penchant.recipes.stages import StageResult
from penchant.recipes.tool_calling.config import ToolCallingConfig

ALL, DUE = "all", "calls due"


@dataclass(frozen=True)
class Row:
    """A path, and the model at its end for each seed; of the base, one."""

    name: str
    folders: tuple[str, ...]


def evaluate(config: ToolCallingConfig, rows: Sequence[Row], folder: Path) -> StageResult:
    """Right answers by category, differences from the base and from the first path, and an edge sheet."""
    test, _ = read_bfcl(folder.parent / "data" / "test")
    style = STYLES[config.style]
    right: dict[str, Floats] = {}
    faults: dict[str, dict[str, int]] = {}
    cut: dict[str, int] = {}
    edge: dict[str, dict[str, Any]] = {}
    for row in rows:
        tables = []
        for number, place in enumerate(row.folders):
            model = load_model(place).to(local_device())
            tokenizer = load_tokenizer(place, chat_template=config.data.chat_template)
            answered = answer_questions(
                model,
                tokenizer,
                test,
                style,
                max_new_tokens=config.answer_tokens,
                constrained=config.constrained,
                rendering=config.data.rendering("last"),
            )
            write_answers(answered, folder / f"{row.name}-{config.seeds[number]}.jsonl")
            tables.append([float(each.fault is None) for each in answered])
            if number == 0:
                report = ToolReport.of(answered)
                faults[row.name], cut[row.name] = dict(report.faults), report.cut
                edge[row.name] = _edges(config, place, test, report.overall)
        right[row.name] = np.array(tables)
    return {
        "models": {name: _by_category(table, test) for name, table in right.items()},
        "differences": {
            before: {name: _differences(right, before, numbers) for name, numbers in _sets(test).items()}
            for before in ("base", next(iter(config.paths)))
        },
        "faults": faults,
        "cut": cut,
        "edge": edge,
    }


def _by_category(right: Floats, test: Sequence[ToolQuestion]) -> dict[str, Any]:
    categories = sorted({each.category for each in test})
    columns = {name: [n for n, each in enumerate(test) if each.category == name] for name in categories}
    return {name: estimate_over_seeds(right[:, numbers]).to_json() for name, numbers in (_sets(test) | columns).items()}


def _sets(test: Sequence[ToolQuestion]) -> dict[str, list[int]]:
    """All questions, and those where a call is due: a model that never calls is right about the others."""
    every = range(len(test))
    return {ALL: list(every), DUE: [n for n in every if test[n].accepted]}


def _differences(right: Mapping[str, Floats], before: str, numbers: Sequence[int]) -> dict[str, Any]:
    """On some questions, of every other path."""
    others = [name for name in right if name not in (before, "base")]
    return paired_differences({name: (right[before][:, numbers], right[name][:, numbers]) for name in others})


def _edges(config: ToolCallingConfig, place: str, test: Sequence[ToolQuestion], in_float32: Estimate) -> dict[str, Any]:
    """In float32 and with eight-bit weights, on the processor: right answers, time, memory."""
    style, tokenizer = STYLES[config.style], load_tokenizer(place)
    most, constrained, timed = config.answer_tokens, config.constrained, spread(test, config.timed)
    small = eight_bits(load_model(place))
    answered = answer_questions(small, tokenizer, test, style, max_new_tokens=most, constrained=constrained)
    found = {}
    for name, right in (("float32", in_float32), ("int8", ToolReport.of(answered).overall)):
        setting = Setting(place, config.style, "cpu", name == "int8", most, constrained)
        found[name] = {"right": right.to_json(), **measure_edge(setting, timed).to_json()}
    return found
