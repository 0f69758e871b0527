"""The dialogue recipe's page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from penchant.data.files import read_rows
from penchant.evaluation.files import write_atomically
from penchant.evaluation.report import RunReport, Sample, Table, show, write_report
from penchant.evaluation.win_rate import verdict_tables
from penchant.recipes.dialogue.config import DialogueConfig
from penchant.recipes.dialogue.evaluation import ALL
from penchant.recipes.dialogue.measures import BETTER
from penchant.recipes.headline import dialogue_headline
from penchant.recipes.stages import StageResult

OVER = {"base": "", "sft": "base"}
"""What a step is compared with; a method with SFT."""


def write_result(folder: Path, config: DialogueConfig, found: Mapping[str, StageResult]) -> None:
    """`result.json` and `report.html`."""
    write_atomically(folder / "result.json", json.dumps(dict(found), indent=2, ensure_ascii=False) + "\n")
    measured = found["evaluation"]
    sets = list(measured["differences"])
    auc = measured["classifier_auc"]
    report = RunReport(
        title="Dialogue",
        summary=[
            dialogue_headline(found),
            *(
                (f"pairs of {name}, {part}", str(n))
                for part, counts in found["data"]["pairs"].items()
                for name, n in counts.items()
            ),
            *(
                (f"left out of {name}: {why}", str(n))
                for name, counts in found["data"]["left_out"].items()
                for why, n in counts.items()
            ),
            ("read by people", ", ".join(f"{name} {n}" for name, n in found["review"].items())),
            *([] if auc is None else [("the empathy classifier's AUC on texts it has not seen", f"{auc:.3f}")]),
        ],
        notices=_notices(config),
        tables=[_values(measured["models"], ALL), _steps(measured["differences"][ALL], "all questions")],
        samples=_samples(folder, config),
        details=[
            _leaks(found["audit"]),
            *verdict_tables(measured["judged"], "SFT, both of the first seed"),
            *(
                table
                for name in sets[1:]
                for table in (_values(measured["models"], name), _steps(measured["differences"][name], name))
                if table.rows
            ),
        ],
        config_yaml=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    write_report(folder / "report.html", report)


def _notices(config: DialogueConfig) -> list[str]:
    told = []
    styled = [name for name, source in config.sources.items() if source.pairs == "styles"]
    if styled and config.rewriting.endpoint is None:
        told.append(
            f"The pairs of {', '.join(styled)} were written by rules that stand in for a language model: a few phrases "
            "around the same facts. A model that prefers their better side has learnt those phrases."
        )
    told.append(
        "empathy, politeness, supported, refused, refers and declines are counted from phrases: that they are there, "
        "not that they are meant."
    )
    return told


def _values(models: Mapping[str, Mapping[str, Mapping[str, Any]]], name: str) -> Table:
    rows = [(model, method, sets[name]) for model, methods in models.items() for method, sets in methods.items()]
    columns = [key for key in BETTER if any(key in values for _, _, values in rows)]
    return Table(
        "All questions" if name == ALL else f"Questions of {name}",
        ("model", "", *columns),
        [(model, method, *(show(values.get(key)) for key in columns)) for model, method, values in rows if values],
        "95 % intervals over seeds and questions; of a base, over questions. preference_accuracy is by log-prob per "
        "token; the rest is of greedy answers.",
    )


def _steps(differences: Mapping[str, Mapping[str, Mapping[str, Any]]], name: str) -> Table:
    rows = [
        (
            f"{model}: {method} over {OVER.get(method, 'sft')}",
            key,
            show(row),
            row["outcome"] or "",
        )
        for key in BETTER
        for model, methods in differences.items()
        for method, measures in methods.items()
        if (row := measures.get(key)) is not None
    ]
    return Table(
        f"What each step changes, {name}",
        ("step", "measure", "difference", ""),
        rows,
        "Paired over seeds and questions, with 95 % intervals. The outcome is corrected (Holm) for the steps of its "
        "measure, not for the number of measures; less is better of grade_level and refused, and words are not judged.",
    )


def _leaks(audit: Mapping[str, Mapping[str, Any]]) -> Table:
    return Table(
        "What style gives away in training",
        ("pairs", "words alone are right", "the better is longer", "words of the better", "words of the worse"),
        [
            (
                name,
                show(row["words"]),
                show(row["longer"]),
                *(", ".join(row[side]) for side in ("of_better", "of_worse")),
            )
            for name, row in audit.items()
        ],
        "A model may learn this instead of what people meant.",
    )


def _samples(folder: Path, config: DialogueConfig) -> list[Sample]:
    """The last model's answers before and after the first method, to the first question of each source."""
    model, method, seed = list(config.models)[-1], next(iter(config.methods)), config.seeds[0]
    before, after = (
        [row for _, row in read_rows(folder / "answers" / f"{model}-{each}-{seed}.jsonl")] for each in ("sft", method)
    )
    first = {row["set"]: n for n, row in reversed(list(enumerate(before))) if row["set"] in config.sources}
    return [
        Sample(before[n]["question"], f"SFT: {before[n]['answer']}", f"{method}: {after[n]['answer']}")
        for n in sorted(first.values())
    ]
