"""Results of recipes: means and paired differences over seeds and questions, their tables, and one-line summaries.

Legend: S seeds, N questions; NaN where a question was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, Field

from penchant.api import (
    DataError,
    Difference,
    Estimate,
    Floats,
    Review,
    Section,
    Table,
    bootstrap_mean,
    file_fingerprint,
    holm,
    mean_over_seeds,
    paired_difference,
    read_groups,
    show,
)

Key = TypeVar("Key")


def _check_seeds(value: list[int]) -> list[int]:
    if len(value) < 2 or len(set(value)) < len(value) or min(value) < 0:
        raise ValueError("expected two seeds or more, each once: one does not show how seeds differ")
    return value


Seeds = Annotated[list[int], AfterValidator(_check_seeds)]
"""A configuration's seeds, at least two: every model is trained once with each seed."""


def mean_over_questions(table: Floats) -> Estimate:
    """Mean of a table [S, N], with an interval over seeds and questions; over questions alone where S is 1."""
    if len(table) == 1:
        values = table[0][~np.isnan(table[0])]
        return bootstrap_mean(values, range(len(values)))
    return mean_over_seeds(table, range(table.shape[1]))


def paired_differences(
    pairs: Mapping[Key, tuple[Floats, Floats]], *, lower_is_better: bool = False
) -> dict[Key, dict[str, Any]]:
    """The second table of every pair minus the first, paired over seeds and questions, as JSON.

    The outcomes are corrected (Holm) for the number of pairs.

    Args:
        pairs: tables (baseline, treatment); a baseline is [S, N], or [1, N] for a single model, a treatment [S, N].
        lower_is_better: decides the outcome only; the sign of the differences stays.
    """
    results = [
        paired_difference(treatment, np.broadcast_to(baseline, treatment.shape))
        for baseline, treatment in pairs.values()
    ]
    verdicts = holm([_negate(result) if lower_is_better else result for result in results])
    return {
        key: _to_json(result, verdict.outcome) for key, result, verdict in zip(pairs, results, verdicts, strict=True)
    }


def _to_json(difference: Difference, outcome: str) -> dict[str, Any]:
    numbers = {name: getattr(difference, name) for name in ("value", "low", "high")}
    finite = {name: None if math.isnan(number) else number for name, number in numbers.items()}
    return {**finite, "n": difference.n_prompts, "outcome": outcome}


def _negate(difference: Difference) -> Difference:
    return replace(difference, value=-difference.value, low=-difference.high, high=-difference.low)


class ReviewConfig(Section):
    """Review of the training pairs by people, before anything is trained on them."""

    most: int = Field(50, ge=1, description="number of pairs in the review queue")
    verdicts: str | None = Field(
        None, description="verdict file of `penchant data review`; null: the recipe does not wait for a review"
    )

    def fingerprint(self) -> str | None:
        """A fingerprint of the verdict file for a stage's settings; its name where it is missing, None without one.

        A stage that was done while the file was missing is thus not taken for one that was done with it.
        """
        exists = self.verdicts is not None and Path(self.verdicts).exists()
        return file_fingerprint(str(self.verdicts)) if exists else self.verdicts


def read_verdicts(queue: Path, verdicts: str | None) -> tuple[set[str], dict[str, int]]:
    """The ids of the rejected groups, and the number of groups by verdict.

    Raises:
        DataError: the verdict file is missing, or groups of the queue have no verdict yet.
    """
    if verdicts is None:
        return set(), {"accept": 0, "reject": 0, "waiting": 0}
    fix = f"penchant data review {queue} --verdicts {verdicts}"
    if not Path(verdicts).exists():
        raise DataError("there is no such file", where=verdicts, fix=fix)
    review = Review(read_groups(queue).groups, Path(verdicts))
    if review.waiting:
        raise DataError(f"{len(review.waiting)} pairs wait for a verdict", where=str(queue), fix=fix)
    return {group.id for group in review.groups} - {group.id for group in review.accepted}, review.counts()


Headline = tuple[str, str]
"""Name of the served model, and its scores; the first line on the terminal and of the report's summary."""

Results = Mapping[str, Mapping[str, Any]]
"""Result of every stage of a recipe, by the stage's name."""


def headline_text(headline: Headline) -> str:
    """The headline as one line of text."""
    return ": ".join(headline)


def recommend_headline(results: Results) -> Headline:
    """The last method's hit ratio, compared with the SFT model's and popularity's."""
    models = results["evaluation"]["models"]
    name = list(models)[-1]
    baselines = {"sft": models.get("sft"), "popularity": results["questions"]["baselines"].get("popularity")}
    baseline_scores = _labelled(
        {baseline: (row or {}).get("hit_ratio@1") for baseline, row in baselines.items() if baseline != name}
    )
    score = f"hit ratio@1 {format_estimate(models[name].get('hit_ratio@1'))}"
    return f"{name}, the last method", _sentence(score, baseline_scores)


def domain_expert_headline(results: Results) -> Headline:
    """Accuracy of the router with and without its fallback, and the scores of its experts' answers."""
    router, routed = results["router"], results["evaluation"]["models"]["routed experts"]
    with_fallback, without_fallback = router["accuracy_with_fallback"], router["accuracy"]
    answers = _labelled(
        {key: routed.get(key) for key in ("instructions_f1", "tasks_exact", "summaries_rouge_l", "preferences_rouge_l")}
    )
    accuracy = (
        f"{format_estimate(with_fallback)} of requests reach the right expert, "
        f"{router['fell_back']} of {with_fallback['n']} fell back"
    )
    return "the router with its fallback", _sentence(
        accuracy, f"without the fallback {format_estimate(without_fallback)} would", answers
    )


def recovered_line(results: Results) -> str:
    """The share of the instruct model's score that adding the residual recovered, as a sentence."""
    recovered, scale = results["evaluation"]["recovered"], f"{results['residual']['chosen']:g}"
    if recovered["value"] is None:
        return f"nothing came back with {scale} of the residual, for the instruct model's score was not lost"
    return f"of the instruct model's score {show(recovered)} came back with {scale} of the residual"


def dialogue_headline(results: Results) -> Headline:
    """The last method of the last trained model over all questions, compared with its SFT model."""
    models = results["evaluation"]["models"]
    model = [name for name, methods in models.items() if "endpoint" not in methods][-1]
    method = list(models[model])[-1]
    values, sft_values = (models[model].get(name, {}).get("all", {}) for name in (method, "sft"))
    sft = _labelled({"sft": sft_values.get("preference_accuracy") if method != "sft" else None})
    texts = _labelled({key: values.get(key) for key in ("rouge_l", "supported")})
    accuracy = f"preference_accuracy {format_estimate(values.get('preference_accuracy'))}"
    return f"{model} {method}, the last method", _sentence(accuracy, sft, texts)


def tool_calling_headline(results: Results) -> Headline:
    """Share of right calls of the last path, also with eight-bit weights, compared with the base model's."""
    evaluation = results["evaluation"]
    name = list(evaluation["models"])[-1]
    int8 = evaluation["edge"].get(name, {}).get("int8", {}).get("right")
    comparisons = _labelled({"with eight-bit weights": int8, "base": evaluation["models"].get("base", {}).get("all")})
    right_calls = f"right calls {format_estimate(evaluation['models'][name]['all'])}"
    return f"{name}, the last path", _sentence(right_calls, comparisons)


def self_improve_headline(results: Results) -> Headline:
    """The served learner's success on the test prompts, and its gain over the first learner."""
    rounds = results["evaluation"]["rounds"]
    initial, last = rounds[0], rounds[-1]
    name = "the first learner, which is still served" if last["served"] == 0 else f"update {last['served']}, served"
    change = (
        f"before {format_estimate(initial['success'])}, gained {format_estimate(last['gained'])}"
        if last["round"]
        else ""
    )
    return name, _sentence(f"success {format_estimate(last['success'])}", change)


def estimate_table(
    title: str, rows: Mapping[str, Mapping[str, Any]], note: str, columns: Sequence[str] | None = None
) -> Table:
    """A table of estimates by row and column; a missing one is an empty cell. By default all columns of the rows."""
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    return Table(
        title, ("", *columns), [(name, *(show(row.get(key)) for key in columns)) for name, row in rows.items()], note
    )


def format_estimate(estimate: Mapping[str, Any] | None) -> str:
    """Value and interval as text, or "not measured"."""
    return show(estimate) or "not measured"


def _labelled(values: Mapping[str, Mapping[str, Any] | None]) -> str:
    return ", ".join(f"{name} {show(value)}" for name, value in values.items() if show(value))


def _sentence(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
