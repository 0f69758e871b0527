"""The last stage: every model's metrics on held-out data, and the report page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.api import (
    BertScore,
    EndpointJudge,
    Figure,
    RunReport,
    Table,
    bootstrap_ratio,
    line_chart,
    read_rows,
    verdict_tables,
    win_rate,
    write_atomically,
)
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.domain_expert.routing import EXPERTS, USER, PromptSet, content, perplexity, preference_accuracy
from penchant.recipes.results import domain_expert_headline, estimate_table, recovered_line
from penchant.recipes.stages import StageResult


def evaluate(config: DomainExpertConfig, folder: Path, base: str, instruct: str, adapted: str) -> StageResult:
    """The metrics of every model and of the routed experts, and the recovered share of the instruct model's gain."""
    data, output = folder.parent / "data", folder.parent
    models = {
        "base": base,
        "instruct": instruct,
        "adapted": adapted,
        "residual": str(output / "residual" / "model"),
        **{expert: str(output / expert / "run") for expert in EXPERTS},
    }
    prompt_sets = {
        name: PromptSet.from_file(data / f"{name}_test.jsonl", config.answers)
        for name in ("instructions", "tasks", "preferences")
    }
    bert_score = config.bert_score.open() if config.bert_score else None
    answers: dict[str, dict[str, list[str]]] = {}
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
        for name, prompt_set in prompt_sets.items():
            metrics |= prompt_set.metrics(name, answers[model][name], bert_score)
        metrics_by_model[model] = {key: value.to_json() for key, value in metrics.items()}
    metrics_by_model["routed experts"] = _routed_metrics(folder, prompt_sets, answers, bert_score)
    judged = {}
    if config.judge is not None:
        prompts, opponents = prompt_sets["preferences"].prompts, answers["instruct"]["preferences"]
        for model in [name for name in models if name != "instruct"]:
            candidates = answers[model]["preferences"]
            judged[model] = win_rate(EndpointJudge(config.judge), prompts, candidates, opponents).to_json()
    scores = {model: prompt_sets["instructions"].f1(answers[model]["instructions"]) for model in models}
    residual_gain, instruct_gain = (
        [a - b for a, b in zip(scores[name], scores["adapted"], strict=True)] for name in ("residual", "instruct")
    )
    recovered = bootstrap_ratio(residual_gain, instruct_gain, range(len(instruct_gain))).to_json()
    return {"models": metrics_by_model, "judged": judged, "recovered": recovered}


def _routed_metrics(
    folder: Path,
    prompt_sets: Mapping[str, PromptSet],
    answers: Mapping[str, Mapping[str, Sequence[str]]],
    bert_score: BertScore | None,
) -> dict[str, Any]:
    """The metrics of the answers of the experts that the router chose.

    Args:
        answers: every model's answers by set.
    """
    decisions = read_rows(folder.parent / "router" / "decisions.jsonl")
    chosen = {row["request"]: row["expert"] for _, row in decisions}
    metrics: dict[str, Any] = {}
    for name in EXPERTS.values():
        experts = [chosen[content(prompt, USER)] for prompt in prompt_sets[name].prompts]
        routed = [answers[expert][name][number] for number, expert in enumerate(experts)]
        metrics |= {key: value.to_json() for key, value in prompt_sets[name].metrics(name, routed, bert_score).items()}
    return metrics


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
                "compare them with the preferred answer; preference_accuracy compares log-probs per token.",
            ),
            Table(
                "Requests and the router's decisions",
                ("", *router["confusion"]),
                [(name, *(str(row[key]) for key in router["confusion"])) for name, row in router["confusion"].items()],
                "Rows: the expert of the request; columns: the router's decision. The confidence of "
                f"{router['fell_back']} was below the threshold, so that the fallback expert answered.",
            ),
        ],
        details=verdict_tables(evaluation["judged"], "the instruct model"),
        figures=curves,
    )
