"""The last stages: every model answers the test's questions; then what changed, over seeds and questions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penchant.data.files import read_rows
from penchant.data.groups import as_text
from penchant.evaluation.files import write_atomically
from penchant.evaluation.generation import Sampling
from penchant.evaluation.human_centric import is_crisis
from penchant.evaluation.judges import EndpointJudge
from penchant.evaluation.rating_sheet import write_sheet
from penchant.evaluation.statistics import Floats
from penchant.evaluation.win_rate import win_rate
from penchant.recipes.comparing import mean_over_seeds, paired_differences
from penchant.recipes.dialogue import probes
from penchant.recipes.dialogue.config import DialogueConfig
from penchant.recipes.dialogue.data import Question, ask, read_questions
from penchant.recipes.dialogue.measures import BETTER, CRISIS, UNSAFE, Instruments, Values, preference_accuracy
from penchant.recipes.reading import generate_answers
from penchant.recipes.stages import StageResult

ALL = "all"
"""The set of all sources' questions."""


@dataclass(frozen=True)
class Row:
    """A base model and what was done to it: one model, or one for each seed.

    Attributes:
        folders: of the models, in the order of the seeds.
    """

    model: str
    method: str
    folders: tuple[str, ...]

    def names(self, seeds: Sequence[int]) -> tuple[str, ...]:
        """Of its models' files."""
        one = f"{self.model}-{self.method}"
        return (one,) if self.method == "base" else tuple(f"{one}-{seed}" for seed in seeds)


def answer_all(config: DialogueConfig, rows: Sequence[Row], folder: Path) -> StageResult:
    """Write every model's greedy answers to the test's questions and the probes, and sheets for people."""
    asked = questions(config, folder)
    prompts = [ask(config, each.question) for each in asked]
    sampling = Sampling(temperature=0.0, max_new_tokens=config.answer_tokens)
    for row in rows:
        for name, model in zip(row.names(config.seeds), row.folders, strict=True):
            answers = [samples[0].strip() for samples in generate_answers(model, prompts, sampling, config.data)]
            lines = [
                json.dumps({"set": q.set, "question": q.question, "answer": text}, ensure_ascii=False) + "\n"
                for q, text in zip(asked, answers, strict=True)
            ]
            write_atomically(folder / f"{name}.jsonl", "".join(lines))
    shown = [n for n, each in enumerate(asked) if each.set in config.sources][: config.sheet]
    for row in rows:
        if row.method in config.methods:
            files = {row.method: row.names(config.seeds)[0], "sft": f"{row.model}-sft-{config.seeds[0]}"}
            given = {method: _answers(folder / f"{name}.jsonl") for method, name in files.items()}
            sheet = folder / "sheets" / f"{row.model}-{row.method}"
            sheet.mkdir(parents=True, exist_ok=True)
            texts = {method: [said[n] for n in shown] for method, said in given.items()}
            write_sheet(sheet, [asked[n].question for n in shown], texts, seed=config.seed)
    return {"questions": len(asked), "models": sum(len(row.folders) for row in rows)}


def evaluate(config: DialogueConfig, rows: Sequence[Row], folder: Path) -> StageResult:
    """Every model's measures by set of questions, what each step adds, and a judge's verdicts where there is one."""
    data, answers = folder.parent / "data", folder.parent / "answers"
    asked = questions(config, answers)
    measure = Instruments.of(config.measures)
    prompts = {as_text(ask(config, q.question)): n for n, q in enumerate(asked) if q.set in config.sources}
    measured: dict[tuple[str, str], list[Values]] = {}
    for row in rows:
        found = []
        for name, place in zip(row.names(config.seeds), row.folders, strict=True):
            values = measure(asked, _answers(answers / f"{name}.jsonl"))
            file = data / "preferences_test.jsonl"
            accuracy = preference_accuracy(place, file, prompts, config.token_budget, config.data)
            found.append({"preference_accuracy": accuracy} | values)
            write_atomically(folder / f"{name}.jsonl", _by_question(asked, found[-1]))
        measured[row.model, row.method] = found
    sets = {ALL: [n for n, q in enumerate(asked) if q.set in config.sources]}
    sets |= {name: [n for n, q in enumerate(asked) if q.set == name] for name in (*config.sources, UNSAFE)}
    # People's questions that speak of suicide or self-harm stand among the probes.
    sets[CRISIS] = [n for n, q in enumerate(asked) if q.set == CRISIS or is_crisis(q.question)]
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for (model, method), per_seed in measured.items():
        own = models.setdefault(model, {}).setdefault(method, {})
        for name, numbers in sets.items():
            own[name] = {key: mean_over_seeds(table).to_json() for key, table in _tables(per_seed, name, numbers)}
    return {
        "models": models,
        "differences": {name: _differences(measured, name, numbers) for name, numbers in sets.items()},
        "judged": _judged(config, rows, asked, answers),
        "classifier_auc": None if measure.classifier is None else measure.classifier.auc,
    }


def questions(config: DialogueConfig, folder: Path) -> list[Question]:
    """The test's, and the probes."""
    own = [(CRISIS, text) for text in probes.CRISIS] + [(UNSAFE, text) for text in probes.UNSAFE]
    return [*read_questions(folder.parent / "data"), *(Question(name, text, "", text) for name, text in own)]


def _answers(file: Path) -> list[str]:
    return [row["answer"] for _, row in read_rows(file)]


def _by_question(asked: Sequence[Question], values: Values) -> str:
    rows = (
        {"set": each.set, "question": each.question} | {key: of[n] for key, of in values.items() if n in of}
        for n, each in enumerate(asked)
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _tables(per_seed: Sequence[Values], name: str, numbers: Sequence[int]) -> Iterator[tuple[str, Floats]]:
    """[S, N] of each measure of a set's questions; of the probes, whether they were answered safely alone."""
    safe = {CRISIS: "refers", UNSAFE: "declines"}
    for key in [safe[name]] if name in safe else [key for key in BETTER if key not in safe.values()]:
        table = [[values.get(key, {}).get(n, math.nan) for n in numbers] for values in per_seed]
        if not np.isnan(table).all():
            yield key, np.array(table)


def _differences(
    measured: Mapping[tuple[str, str], Sequence[Values]], name: str, numbers: Sequence[int]
) -> dict[str, dict[str, dict[str, Any]]]:
    """By model, step and measure: SFT less base, every method less SFT; verdicts count all of a measure's.

    Holm's correction is over the models and methods of one measure, and not over measures.
    """
    steps = [(model, method, "base" if method == "sft" else "sft") for model, method in measured if method != "base"]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    tables = {key: dict(_tables(values, name, numbers)) for key, values in measured.items()}
    for key, better in BETTER.items():
        pairs = {
            (model, method): (tables[model, before][key], tables[model, method][key])
            for model, method, before in steps
            if all(key in tables[model, each] for each in (before, method))
        }
        for (model, method), row in paired_differences(pairs, lower_is_better=better == "lower").items():
            told = row if better != "neither" else row | {"outcome": None}
            found.setdefault(model, {}).setdefault(method, {})[key] = told
    return found


def _judged(config: DialogueConfig, rows: Sequence[Row], asked: Sequence[Question], folder: Path) -> dict[str, Any]:
    """Every method against SFT, both of the first seed, by the judge; and at equal lengths."""
    if config.measures.judge is None:
        return {}
    judge = EndpointJudge(config.measures.judge)
    own = [n for n, each in enumerate(asked) if each.set in config.sources]
    prompts = [asked[n].question for n in own]
    found: dict[str, Any] = {}
    for row in rows:
        if row.method in config.methods:
            names = (row.names(config.seeds)[0], f"{row.model}-sft-{config.seeds[0]}")
            ours, theirs = ([_answers(folder / f"{name}.jsonl")[n] for n in own] for name in names)
            found[f"{row.model} {row.method}"] = win_rate(judge, prompts, ours, theirs).to_json()
    return found
