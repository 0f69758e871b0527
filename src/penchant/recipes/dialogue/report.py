"""The dialogue recipe's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penchant.api import RunReport, Sample, Table, read_rows, show, verdict_tables
from penchant.recipes.dialogue.config import DialogueConfig
from penchant.recipes.dialogue.evaluation import ALL
from penchant.recipes.dialogue.measures import METRIC_DIRECTIONS
from penchant.recipes.results import dialogue_headline
from penchant.recipes.stages import StageResult

BASELINES = {"base": "", "sft": "base"}
"""The step that each step is compared with; methods, which are not listed, are compared with SFT."""


def build_report(folder: Path, config: DialogueConfig, results: Mapping[str, StageResult]) -> RunReport:
    """The report page of the stages' results."""
    evaluation = results["evaluation"]
    sets = list(evaluation["differences"])
    auc = evaluation["classifier_auc"]
    return RunReport(
        title="Dialogue",
        summary=[
            dialogue_headline(results),
            *(
                (f"pairs of {name}, {part}", str(n))
                for part, counts in results["data"]["pairs"].items()
                for name, n in counts.items()
            ),
            *(
                (f"left out of {name}: {reason}", str(n))
                for name, counts in results["data"]["left_out"].items()
                for reason, n in counts.items()
            ),
            ("reviewed by people", ", ".join(f"{name} {n}" for name, n in results["review"].items())),
            *([] if auc is None else [("the empathy classifier's AUC on texts it has not seen", f"{auc:.3f}")]),
        ],
        notices=_notices(config),
        tables=[
            _values(evaluation["models"], ALL),
            _steps(evaluation["differences"][ALL], "all questions"),
            *([_over_endpoints(evaluation["over_endpoints"][ALL])] if config.endpoints else []),
        ],
        samples=_samples(folder, config),
        details=[
            _leaks(results["audit"]),
            *verdict_tables(evaluation["judged"], "SFT, both of the first seed"),
            *(
                table
                for name in sets[1:]
                for table in (_values(evaluation["models"], name), _steps(evaluation["differences"][name], name))
                if table.rows
            ),
        ],
    )


def _notices(config: DialogueConfig) -> list[str]:
    notices = []
    styled = [name for name, source in config.sources.items() if source.pairs == "styles"]
    if styled and config.rewriting.endpoint is None:
        notices.append(
            f"The pairs of {', '.join(styled)} were written by rules, not by a language model: a few phrases around "
            "the same facts. A model that prefers their better side has learnt those phrases."
        )
    notices.append(
        "empathy, politeness, supported, refused, refers and declines are computed from phrases: they show that a "
        "phrase occurs, not that it is meant."
    )
    return notices


def _values(models: Mapping[str, Mapping[str, Mapping[str, Any]]], name: str) -> Table:
    rows = [(model, method, sets[name]) for model, methods in models.items() for method, sets in methods.items()]
    columns = [key for key in METRIC_DIRECTIONS if any(key in values for _, _, values in rows)]
    return Table(
        "All questions" if name == ALL else f"Questions of {name}",
        ("model", "", *columns),
        [(model, method, *(show(values.get(key)) for key in columns)) for model, method, values in rows if values],
        "95 % intervals over seeds and questions; for a base model over questions. preference_accuracy compares "
        "log-probs per token, which an endpoint does not give; the other metrics are of greedy answers.",
    )


def _steps(differences: Mapping[str, Mapping[str, Mapping[str, Any]]], name: str) -> Table:
    rows = [
        (
            f"{model}: {method} over {BASELINES.get(method, 'sft')}",
            key,
            show(row),
            row["outcome"] or "",
        )
        for key in METRIC_DIRECTIONS
        for model, methods in differences.items()
        for method, measures in methods.items()
        if (row := measures.get(key)) is not None
    ]
    return Table(
        f"Changes by step, {name}",
        ("step", "measure", "difference", ""),
        rows,
        "Paired over seeds and questions, with 95 % intervals. The outcome is corrected (Holm) for the steps of its "
        "measure, not for the number of measures; lower is better for grade_level and refused, words has no outcome.",
    )


def _over_endpoints(differences: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    rows = [
        (f"{variant} over {endpoint}", key, show(row), row["outcome"] or "")
        for key in METRIC_DIRECTIONS
        for endpoint, variants in differences.items()
        for variant, measures in variants.items()
        if (row := measures.get(key)) is not None
    ]
    return Table(
        "Methods over endpoints, all questions",
        ("", "measure", "difference", ""),
        rows,
        "Paired over seeds and questions, with 95 % intervals. The outcome is corrected (Holm) for the endpoints and "
        "methods of its measure.",
    )


def _leaks(audit: Mapping[str, Mapping[str, Any]]) -> Table:
    return Table(
        "How well style alone predicts the better answer in training",
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
        "A model may learn this instead of people's preferences.",
    )


def _samples(folder: Path, config: DialogueConfig) -> list[Sample]:
    """Answers of the last model before and after the first method, to the first question of each source."""
    model, method, seed = list(config.trained_models)[-1], next(iter(config.methods)), config.seeds[0]
    sft_rows, method_rows = (
        [row for _, row in read_rows(folder / "answers" / f"{model}-{step}-{seed}.jsonl")] for step in ("sft", method)
    )
    numbers = {row["set"]: n for n, row in reversed(list(enumerate(sft_rows))) if row["set"] in config.sources}
    return [
        Sample(sft_rows[n]["question"], f"SFT: {sft_rows[n]['answer']}", f"{method}: {method_rows[n]['answer']}")
        for n in sorted(numbers.values())
    ]
