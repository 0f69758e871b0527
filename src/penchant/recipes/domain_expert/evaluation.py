"""The last stage: every model on what was held out; then the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from penchant.data.files import read_rows
from penchant.evaluation.figures import line_chart
from penchant.evaluation.files import write_atomically
from penchant.evaluation.judges import EndpointJudge
from penchant.evaluation.report import Figure, RunReport, Table, show, write_report
from penchant.evaluation.similarity import BertScore
from penchant.evaluation.statistics import bootstrap_ratio
from penchant.evaluation.win_rate import verdict_tables, win_rate
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.domain_expert.measures import Asked, content, perplexity, preference_accuracy
from penchant.recipes.domain_expert.routing import EXPERTS, USER
from penchant.recipes.headline import domain_expert_headline, recovered_line
from penchant.recipes.stages import StageResult


def evaluate(config: DomainExpertConfig, folder: Path, base: str, instruct: str, adapted: str) -> StageResult:
    """Every model's measures, those of the experts behind the router, and how much of the instruct model came back."""
    data, output = folder.parent / "data", folder.parent
    models = {
        "base": base,
        "instruct": instruct,
        "adapted": adapted,
        "residual": str(output / "residual" / "model"),
        **{expert: str(output / expert / "run") for expert in EXPERTS},
    }
    asked = {
        name: Asked.of(data / f"{name}_test.jsonl", config.answers) for name in ("instructions", "tasks", "preferences")
    }
    alike = config.bert_score.open() if config.bert_score else None
    said: dict[str, dict[str, list[str]]] = {}
    found: dict[str, dict[str, Any]] = {}
    for model, place in models.items():
        said[model] = {name: each.answered(place, config) for name, each in asked.items()}
        write_atomically(
            folder / f"{model}.jsonl",
            "".join(
                json.dumps({"set": name, "prompt": prompt, "answer": answer}, ensure_ascii=False) + "\n"
                for name, each in asked.items()
                for prompt, answer in zip(each.prompts, said[model][name], strict=True)
            ),
        )
        own = {"perplexity": perplexity(place, data / "texts_held_out.jsonl", config)}
        own["preference_accuracy"] = preference_accuracy(place, data / "preferences_test.jsonl", config)
        for name, each in asked.items():
            own |= each.measures(name, said[model][name], alike)
        found[model] = {key: value.to_json() for key, value in own.items()}
    found["routed experts"] = _routed(folder, asked, said, alike)
    judged = {}
    if config.judge is not None:
        prompts, theirs = asked["preferences"].prompts, said["instruct"]["preferences"]
        for model in [name for name in models if name != "instruct"]:
            judged[model] = win_rate(EndpointJudge(config.judge), prompts, said[model]["preferences"], theirs).to_json()
    scores = {model: asked["instructions"].f1(said[model]["instructions"]) for model in models}
    gained, lost = (
        [a - b for a, b in zip(scores[name], scores["adapted"], strict=True)] for name in ("residual", "instruct")
    )
    recovered = bootstrap_ratio(gained, lost, range(len(lost))).to_json()
    return {"models": found, "judged": judged, "recovered": recovered}


def _routed(
    folder: Path,
    asked: Mapping[str, Asked],
    said: Mapping[str, Mapping[str, Sequence[str]]],
    alike: BertScore | None,
) -> dict[str, Any]:
    """Each request answered by the expert that the router chose."""
    decisions = read_rows(folder.parent / "router" / "decisions.jsonl")
    chosen = {row["request"]: row["expert"] for _, row in decisions}
    found: dict[str, Any] = {}
    for name in EXPERTS.values():
        experts = [chosen[content(prompt, USER)] for prompt in asked[name].prompts]
        answers = [said[expert][name][number] for number, expert in enumerate(experts)]
        found |= {key: value.to_json() for key, value in asked[name].measures(name, answers, alike).items()}
    return found


def write_result(folder: Path, config: DomainExpertConfig, found: Mapping[str, StageResult]) -> None:
    """`result.json` and `report.html`."""
    write_atomically(folder / "result.json", json.dumps(dict(found), indent=2, ensure_ascii=False) + "\n")
    measured, residual, router = found["evaluation"], found["residual"], found["router"]
    columns = list(dict.fromkeys(key for row in measured["models"].values() for key in row))
    scales = [each["scale"] for each in residual["scales"]]
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
            ("Perplexity of the field's text", "perplexity", "perplexity", "Of held-out sections."),
        )
    ]
    report = RunReport(
        title="Domain expert",
        summary=[
            domain_expert_headline(found),
            ("residual", recovered_line(found)),
            *((name.replace("_", " "), str(n)) for name, n in found["data"]["groups"].items()),
            *((f"left out: {why}", str(n)) for why, n in found["data"]["left_out"].items()),
        ],
        tables=[
            Table(
                "On what was held out",
                ("", *columns),
                [(name, *(show(row.get(key)) for key in columns)) for name, row in measured["models"].items()],
                "95 % intervals over prompts (texts, of perplexity). Answers are greedy; preferences_ compares them "
                "with the better answer; preference_accuracy is by log-prob per token.",
            ),
            Table(
                "Requests, and whom the router takes them for",
                ("", *router["confusion"]),
                [(name, *(str(row[key]) for key in router["confusion"])) for name, row in router["confusion"].items()],
                f"Rows: whose the request is. {router['fell_back']} fell below the threshold, to the fallback.",
            ),
        ],
        details=verdict_tables(measured["judged"], "the instruct model"),
        figures=curves,
        config_yaml=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    write_report(folder / "report.html", report)
