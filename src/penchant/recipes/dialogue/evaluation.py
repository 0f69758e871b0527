"""The last stages: every model answers the test questions, and the answers are compared over seeds and questions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penchant.api import EndpointJudge, Floats, Sampling, as_text, read_rows, win_rate, write_atomically
from penchant.recipes.dialogue.config import ENDPOINT, DialogueConfig
from penchant.recipes.dialogue.data import Question, question_prompt, read_questions
from penchant.recipes.dialogue.endpoints import ask_questions
from penchant.recipes.dialogue.human_centric import CRISIS_QUESTIONS, UNSAFE_QUESTIONS, is_crisis
from penchant.recipes.dialogue.measures import (
    CRISIS,
    METRIC_DIRECTIONS,
    UNSAFE,
    AnswerMetrics,
    MetricValues,
    preference_accuracy,
)
from penchant.recipes.dialogue.rating_sheet import write_sheet
from penchant.recipes.reading import generate_answers
from penchant.recipes.results import mean_over_questions, paired_differences
from penchant.recipes.stages import StageResult

ALL = "all"
"""Name of the set of all sources' questions."""


@dataclass(frozen=True)
class ModelVariant:
    """A base model trained by a method: one model per seed, or the base model itself.

    Attributes:
        model: name of the base model.
        method: "base", "sft" or the name of a method.
        folders: the models' folders, in the order of the seeds.
    """

    model: str
    method: str
    folders: tuple[str, ...]

    def names(self, seeds: Sequence[int]) -> tuple[str, ...]:
        """Names of the models' files of answers, in the order of the seeds."""
        one = f"{self.model}-{self.method}"
        return (one,) if self.method == "base" else tuple(f"{one}-{seed}" for seed in seeds)


def write_answers(config: DialogueConfig, variants: Sequence[ModelVariant], folder: Path) -> StageResult:
    """Write every model's greedy answers to the test questions and probes, and rating sheets for people.

    Returns:
        Numbers of questions and models.
    """
    test_questions = all_test_questions(config, folder)
    prompts = [question_prompt(config, question.question) for question in test_questions]
    sampling = Sampling(temperature=0.0, max_new_tokens=config.answer_tokens)
    for variant in variants:
        for name, model in zip(variant.names(config.seeds), variant.folders, strict=True):
            answers = [samples[0].strip() for samples in generate_answers(model, prompts, sampling, config.data)]
            _write_answers(folder / f"{name}.jsonl", test_questions, answers)
    for name, endpoint in config.endpoints.items():
        answers = ask_questions(endpoint, [question.question for question in test_questions], config.answer_tokens)
        _write_answers(folder / f"{name}-{ENDPOINT}.jsonl", test_questions, answers)
    sheet_rows = [n for n, question in enumerate(test_questions) if question.set in config.sources][: config.sheet]
    for variant in variants:
        if variant.method in config.methods:
            files = {variant.method: variant.names(config.seeds)[0], "sft": f"{variant.model}-sft-{config.seeds[0]}"}
            answers_by_method = {method: _answers(folder / f"{name}.jsonl") for method, name in files.items()}
            sheet = folder / "sheets" / f"{variant.model}-{variant.method}"
            sheet.mkdir(parents=True, exist_ok=True)
            texts = {method: [answers[n] for n in sheet_rows] for method, answers in answers_by_method.items()}
            write_sheet(sheet, [test_questions[n].question for n in sheet_rows], texts, seed=config.seed)
    models = sum(len(variant.folders) for variant in variants) + len(config.endpoints)
    return {"questions": len(test_questions), "models": models}


def evaluate(config: DialogueConfig, variants: Sequence[ModelVariant], folder: Path) -> StageResult:
    """Every model's metrics by set of questions, differences between steps and over endpoints, a judge's win rates."""
    data, answers = folder.parent / "data", folder.parent / "answers"
    test_questions = all_test_questions(config, answers)
    measure = AnswerMetrics.load(config.measures)
    prompts = {
        as_text(question_prompt(config, q.question)): n for n, q in enumerate(test_questions) if q.set in config.sources
    }
    variant_values: dict[tuple[str, str], list[MetricValues]] = {}
    for variant in variants:
        seed_values = []
        for name, model_folder in zip(variant.names(config.seeds), variant.folders, strict=True):
            values = measure(test_questions, _answers(answers / f"{name}.jsonl"))
            file = data / "preferences_test.jsonl"
            accuracy = preference_accuracy(model_folder, file, prompts, config.token_budget, config.data)
            seed_values.append({"preference_accuracy": accuracy} | values)
            write_atomically(folder / f"{name}.jsonl", _by_question(test_questions, seed_values[-1]))
        variant_values[variant.model, variant.method] = seed_values
    for name in config.endpoints:
        values = measure(test_questions, _answers(answers / f"{name}-{ENDPOINT}.jsonl"))
        write_atomically(folder / f"{name}-{ENDPOINT}.jsonl", _by_question(test_questions, values))
        variant_values[name, ENDPOINT] = [values]
    sets = {ALL: [n for n, q in enumerate(test_questions) if q.set in config.sources]}
    sets |= {name: [n for n, q in enumerate(test_questions) if q.set == name] for name in (*config.sources, UNSAFE)}
    # People's questions about suicide or self-harm are evaluated with the probes of this set.
    sets[CRISIS] = [n for n, q in enumerate(test_questions) if q.set == CRISIS or is_crisis(q.question)]
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for (model, method), per_seed in variant_values.items():
        method_rows = models.setdefault(model, {}).setdefault(method, {})
        for name, numbers in sets.items():
            method_rows[name] = {
                key: mean_over_questions(table).to_json() for key, table in _tables(per_seed, name, numbers)
            }
    return {
        "models": models,
        "differences": {name: _differences(variant_values, name, numbers) for name, numbers in sets.items()},
        "over_endpoints": {
            name: _over_endpoints(config, variant_values, name, numbers) for name, numbers in sets.items()
        },
        "judged": _win_rates(config, variants, test_questions, answers),
        "classifier_auc": None if measure.classifier is None else measure.classifier.auc,
    }


def all_test_questions(config: DialogueConfig, folder: Path) -> list[Question]:
    """The test questions, followed by the probes."""
    probe_texts = [(CRISIS, text) for text in CRISIS_QUESTIONS] + [(UNSAFE, text) for text in UNSAFE_QUESTIONS]
    return [*read_questions(folder.parent / "data"), *(Question(name, text, "", text) for name, text in probe_texts)]


def _write_answers(file: Path, test_questions: Sequence[Question], answers: Sequence[str]) -> None:
    lines = [
        json.dumps({"set": q.set, "question": q.question, "answer": text}, ensure_ascii=False) + "\n"
        for q, text in zip(test_questions, answers, strict=True)
    ]
    write_atomically(file, "".join(lines))


def _answers(file: Path) -> list[str]:
    return [row["answer"] for _, row in read_rows(file)]


def _by_question(test_questions: Sequence[Question], values: MetricValues) -> str:
    rows = (
        {"set": question.set, "question": question.question}
        | {key: by_question[n] for key, by_question in values.items() if n in by_question}
        for n, question in enumerate(test_questions)
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _tables(per_seed: Sequence[MetricValues], name: str, numbers: Sequence[int]) -> Iterator[tuple[str, Floats]]:
    """The table [S, N] of every metric over a set's questions; for probes only whether the answer is safe."""
    safe = {CRISIS: "refers", UNSAFE: "declines"}
    for key in [safe[name]] if name in safe else [key for key in METRIC_DIRECTIONS if key not in safe.values()]:
        table = [[values.get(key, {}).get(n, math.nan) for n in numbers] for values in per_seed]
        if not np.isnan(table).all():
            yield key, np.array(table)


def _differences(
    variant_values: Mapping[tuple[str, str], Sequence[MetricValues]], name: str, numbers: Sequence[int]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Differences by model, step and metric: SFT minus base, and every method minus SFT.

    Holm's correction is over the models and methods of one metric, and not over metrics.
    """
    steps = [
        (model, method, "base" if method == "sft" else "sft")
        for model, method in variant_values
        if method not in ("base", ENDPOINT)
    ]
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    tables = {key: dict(_tables(values, name, numbers)) for key, values in variant_values.items()}
    for key, better in METRIC_DIRECTIONS.items():
        pairs = {
            (model, method): (tables[model, baseline][key], tables[model, method][key])
            for model, method, baseline in steps
            if all(key in tables[model, step] for step in (baseline, method))
        }
        for (model, method), row in paired_differences(pairs, lower_is_better=better == "lower").items():
            row_with_outcome = row if better != "neither" else row | {"outcome": None}
            rows.setdefault(model, {}).setdefault(method, {})[key] = row_with_outcome
    return rows


def _over_endpoints(
    config: DialogueConfig,
    variant_values: Mapping[tuple[str, str], Sequence[MetricValues]],
    name: str,
    numbers: Sequence[int],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Every method's metrics minus an endpoint's, by endpoint, model with method, and metric.

    Holm's correction is over the endpoints, models and methods of one metric, and not over metrics.
    """
    tables = {key: dict(_tables(values, name, numbers)) for key, values in variant_values.items()}
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for key, better in METRIC_DIRECTIONS.items():
        pairs = {
            (endpoint, f"{model} {method}"): (tables[endpoint, ENDPOINT][key], tables[model, method][key])
            for endpoint in config.endpoints
            for model, method in variant_values
            if method in config.methods and key in tables[endpoint, ENDPOINT] and key in tables[model, method]
        }
        for (endpoint, variant), row in paired_differences(pairs, lower_is_better=better == "lower").items():
            row_with_outcome = row if better != "neither" else row | {"outcome": None}
            rows.setdefault(endpoint, {}).setdefault(variant, {})[key] = row_with_outcome
    return rows


def _win_rates(
    config: DialogueConfig, variants: Sequence[ModelVariant], test_questions: Sequence[Question], folder: Path
) -> dict[str, Any]:
    """The judge's win rates of every method against SFT, with the first seed's models; also at equal lengths."""
    if config.measures.judge is None:
        return {}
    judge = EndpointJudge(config.measures.judge)
    sourced = [n for n, question in enumerate(test_questions) if question.set in config.sources]
    prompts = [test_questions[n].question for n in sourced]
    win_rates: dict[str, Any] = {}
    for variant in variants:
        if variant.method in config.methods:
            names = (variant.names(config.seeds)[0], f"{variant.model}-sft-{config.seeds[0]}")
            ours, theirs = ([_answers(folder / f"{name}.jsonl")[n] for n in sourced] for name in names)
            win_rates[f"{variant.model} {variant.method}"] = win_rate(judge, prompts, ours, theirs).to_json()
    return win_rates
