"""The last stage: every model's metrics on held-out data, and the report page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.api import (
    EndpointJudge,
    Estimate,
    Figure,
    RunReport,
    Table,
    bootstrap_ratio,
    difference_of_shares,
    line_chart,
    read_rows,
    resampled_mean,
    verdict_tables,
    win_rate,
    write_atomically,
)
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.domain_expert.routing import (
    USER,
    AnswerMeasures,
    MetricValues,
    PromptSet,
    content,
    mean_values,
    perplexity,
    preference_accuracy,
)
from penchant.recipes.results import domain_expert_headline, estimate_table, recovered_line
from penchant.recipes.stages import StageResult


def evaluate(config: DomainExpertConfig, folder: Path, base: str, instruct: str, adapted: str) -> StageResult:
    """The metrics of every model and of the routed experts, and of what these gain over one model.

    Returns:
        Also a judge's verdicts, and the share of the instruct model's score that the residual recovered.
    """
    data, output = folder.parent / "data", folder.parent
    models = {
        "base": base,
        "instruct": instruct,
        "adapted": adapted,
        "residual": str(output / "residual" / "model"),
        **{name: str(output / name / "run") for name in (*config.sets_by_expert, "single")},
    }
    prompt_sets = {name: PromptSet.from_file(data / f"{name}_test.jsonl", config.answers) for name in config.sets}
    measures = AnswerMeasures.open(config)
    answers: dict[str, dict[str, list[str]]] = {}
    values: dict[str, MetricValues] = {}
    metrics_by_model: dict[str, dict[str, Any]] = {}
    for model, path in models.items():
        answers[model] = {name: prompts.answer(path, config) for name, prompts in prompt_sets.items()}
        write_atomically(
            folder / f"{model}.jsonl",
            "".join(
                json.dumps({"set": name, "prompt": prompt, "answer": answer}, ensure_ascii=False) + "\n"
                for name in prompt_sets
                for prompt, answer in zip(prompt_sets[name].prompts, answers[model][name], strict=True)
            ),
        )
        metrics = {"perplexity": perplexity(path, data / "texts_held_out.jsonl", config)}
        metrics["preference_accuracy"] = preference_accuracy(path, data / "preferences_test.jsonl", config)
        values[model] = _values(prompt_sets, answers[model], measures)
        metrics_by_model[model] = {
            key: value.to_json() for key, value in (metrics | mean_values(values[model])).items()
        }
    routed = {name: prompt_sets[name] for sets in config.sets_by_expert.values() for name in sets}
    values[ROUTED] = _values(routed, _routed_answers(folder, routed, answers), measures)
    metrics_by_model[ROUTED] = {key: value.to_json() for key, value in mean_values(values[ROUTED]).items()}
    judged = {}
    if config.judge is not None:
        prompts, opponents = prompt_sets["preferences"].prompts, answers["instruct"]["preferences"]
        for model in [name for name in models if name != "instruct"]:
            candidates = answers[model]["preferences"]
            judged[model] = win_rate(EndpointJudge(config.judge), prompts, candidates, opponents).to_json()
    scores = {model: values[model]["instructions_f1"] for model in models}
    residual_gain, instruct_gain = (
        [a - b for a, b in zip(scores[name], scores["adapted"], strict=True)] for name in ("residual", "instruct")
    )
    recovered = bootstrap_ratio(residual_gain, instruct_gain, range(len(instruct_gain))).to_json()
    return {
        "models": metrics_by_model,
        "experts_over_single": {
            key: value.to_json() for key, value in _gains(values[ROUTED], values["single"]).items()
        },
        "judged": judged,
        "unrated": sum(
            math.isnan(value) for by_metric in values.values() for row in by_metric.values() for value in row
        ),
        "recovered": recovered,
    }


ROUTED = "routed experts"
"""Name of the experts behind the router, among the models."""


def _values(
    prompt_sets: Mapping[str, PromptSet], answers: Mapping[str, Sequence[str]], measures: AnswerMeasures
) -> MetricValues:
    """Every metric of the answers to all sets."""
    rows = (prompts.values(name, answers[name], measures) for name, prompts in prompt_sets.items())
    return {key: row for by_metric in rows for key, row in by_metric.items()}


def _routed_answers(
    folder: Path, prompt_sets: Mapping[str, PromptSet], answers: Mapping[str, Mapping[str, Sequence[str]]]
) -> dict[str, list[str]]:
    """The answers of the experts that the router chose, by set.

    Args:
        answers: every model's answers by set.
    """
    decisions = read_rows(folder.parent / "router" / "decisions.jsonl")
    chosen = {row["request"]: row["expert"] for _, row in decisions}
    routed = {}
    for name, prompts in prompt_sets.items():
        experts = [chosen[content(prompt, USER)] for prompt in prompts.prompts]
        routed[name] = [answers[expert][name][number] for number, expert in enumerate(experts)]
    return routed


def _gains(routed: MetricValues, single: MetricValues) -> dict[str, Estimate]:
    """The routed experts' mean of every metric minus the single model's."""
    return {key: _paired_difference(values, single[key]) for key, values in routed.items()}


def _paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The mean difference on the prompts that have both values, with an interval over them."""
    pairs = [pair for pair in zip(ours, theirs, strict=True) if not any(map(math.isnan, pair))]
    if all(value in (0.0, 1.0) for pair in pairs for value in pair):
        return difference_of_shares([a for a, _ in pairs], [b for _, b in pairs], range(len(pairs)))
    return resampled_mean([a - b for a, b in pairs], range(len(pairs)))


def build_report(results: Mapping[str, StageResult]) -> RunReport:
    """The report page of the stages' results."""
    evaluation, residual, router = results["evaluation"], results["residual"], results["router"]
    scales = [row["scale"] for row in residual["scales"]]
    curves = [
        Figure(
            title,
            line_chart(
                title,
                "scale of the residual",
                unit,
                {"validation": (scales, [e[key]["value"] for e in residual["scales"]])},
            ),
            note,
        )
        for title, unit, key, note in (
            ("Instructions followed", "token F1", "instructions_f1", "Greedy answers to validation instructions."),
            ("Perplexity of the domain's text", "perplexity", "perplexity", "On held-out sections."),
        )
    ]
    return RunReport(
        title="Domain expert",
        summary=[
            domain_expert_headline(results),
            ("residual", recovered_line(results)),
            *((name.replace("_", " "), str(n)) for name, n in results["data"]["groups"].items()),
            *((f"left out: {reason}", str(n)) for reason, n in results["data"]["left_out"].items()),
        ],
        tables=[
            estimate_table(
                "Metrics on held-out data",
                evaluation["models"],
                "95 % intervals over prompts (for perplexity over texts). Answers are greedy; columns preferences_ "
                "compare them with the preferred answer; preference_accuracy compares log-probs per token. Ratings "
                f"are a judge's, from 1 to 5; {evaluation['unrated']} were not given.",
            ),
            estimate_table(
                "Two experts behind the router, over one model with the training of both",
                {"difference": evaluation["experts_over_single"]},
                "Paired over prompts, with 95 % intervals.",
            ),
            Table(
                "Requests and the router's decisions",
                ("", *router["confusion"]),
                [(name, *(str(row[key]) for key in router["confusion"])) for name, row in router["confusion"].items()],
                "Rows: the expert of the request; columns: the router's decision. The confidence of "
                f"{router['fell_back']} was below the threshold ({router['threshold']:.3f}), so that the fallback "
                "expert answered.",
            ),
        ],
        details=verdict_tables(evaluation["judged"], "the instruct model"),
        figures=curves,
    )
