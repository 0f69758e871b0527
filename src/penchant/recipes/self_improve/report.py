"""The report of the rounds: success by round and category, alarms, and updates."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penchant.api import (
    Estimate,
    Figure,
    Floats,
    RunReport,
    Table,
    bootstrap_mean,
    difference_of_shares,
    line_chart,
    show,
)
from penchant.recipes.results import self_improve_headline
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.gate import stop_reason
from penchant.recipes.self_improve.learner import LearnerBackend, update_folder
from penchant.recipes.self_improve.run_folder import build_backend, read_splits
from penchant.recipes.self_improve.trainer import RESULT
from penchant.recipes.stages import write_result

COLLAPSE_METRICS = ("amount", "distinct", "distance")
STALLED_ROUNDS = 2
"""Number of rounds in a row without a better test result that raises an alarm."""
MIN_DISTINCT, MAX_CHANGE = 0.5, 2.0
"""Limits that raise alarms: minimum `distinct` as a share of the first learner's, and maximum factor of change of
`amount`; also the maximum factor on the best learner's `distance`, once no learner is better."""
N_EXAMPLES = 12
"""Number of prompts whose first and last answers are in the report, with the categories in turn."""


def summarise(config: SelfImproveConfig, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result as JSON: success by round and category with intervals over prompts, gains, alarms and updates."""
    backend = build_backend(config)
    tests = [np.array(round_["test"]["satisfied"]) for round_ in rounds]
    first_round = [np.array(round_["first round"]["satisfied"]) for round_ in rounds]
    return {
        "rounds": [
            {
                "round": round_["round"],
                "served": round_["served"],
                "success": bootstrap_mean(test, range(len(test))).to_json(),
                "gained": _gained(round_["served"] == rounds[0]["served"], test, tests[0]).to_json(),
                "first round's prompts": bootstrap_mean(first_test, range(len(first_test))).to_json(),
                **{key: round_["test"][key] for key in COLLAPSE_METRICS},
                **{key: round_[key] for key in ("judgements", "groups", "swaps", "seconds", "waited") if key in round_},
            }
            for round_, test, first_test in zip(rounds, tests, first_round, strict=True)
        ],
        "signs": {name: getattr(backend, name) for name in COLLAPSE_METRICS},
        "categories": _by_category(config, tests[0], tests[-1]),
        "alarms": [*([reason] if (reason := stop_reason(config, rounds)) else []), *alarms(backend, rounds)],
        "updates": _updates(config),
    }


def _gained(unchanged: bool, shares: Floats, first_shares: Floats) -> Estimate:
    """The gain over the first learner, paired by prompt; exactly 0 if the first learner is still served."""
    if unchanged:
        return Estimate(0.0, 0.0, 0.0, len(shares))
    return difference_of_shares(shares, first_shares, range(len(shares)))


def alarms(backend: LearnerBackend, rounds: Sequence[dict[str, Any]]) -> list[str]:
    """Warnings about stalled progress, collapse, unjudged answers and forgetting, as sentences."""
    messages = []
    success = [float(np.mean(round_["test"]["satisfied"])) for round_ in rounds]
    best, rounds_since = 0, 0
    for number, share in enumerate(success):
        best, rounds_since = (number, 0) if share > success[best] else (best, rounds_since + 1)
    if len(success) > STALLED_ROUNDS and rounds_since >= STALLED_ROUNDS:
        messages.append(f"no better on the test since round {best}")
    initial, last = rounds[0]["test"], rounds[-1]["test"]
    if last["distinct"] < MIN_DISTINCT * initial["distinct"]:
        messages.append(
            f"answers have become alike: {backend.distinct} {last['distinct']:.2f}, at first {initial['distinct']:.2f}"
        )
    if not initial["amount"] / MAX_CHANGE <= last["amount"] <= initial["amount"] * MAX_CHANGE:
        messages.append(
            f"answers have changed: {backend.amount} {last['amount']:.3g}, at first {initial['amount']:.3g}"
        )
    distances = [round_["test"]["distance"] for round_ in rounds]
    # The first learner's distance is 0: if it is the best, the nearest other learner's distance is taken.
    reference = distances[best] or min((distance for distance in distances if distance), default=0.0)
    if rounds_since and reference and distances[-1] > MAX_CHANGE * reference:
        comparison = f"{reference:.3g} {'at its best' if distances[best] else 'at first'}"
        messages.append(
            f"far from the first learner without a better result: {backend.distance} {distances[-1]:.3g}, {comparison}"
        )
    unjudged = sum(round_.get("unjudged", 0) + round_["test"]["unjudged"] for round_ in rounds)
    if unjudged:
        messages.append(
            f"the verifier gave no verdict on {unjudged} answers: they are not trained on and count as failures"
        )
    first_round = [float(np.mean(round_["first round"]["satisfied"])) for round_ in rounds]
    if len(first_round) > 1 and first_round[-1] < max(first_round) - 0.1:
        messages.append(
            f"the first round's prompts are forgotten: {first_round[-1]:.2f}, at best {max(first_round):.2f}"
        )
    return messages


def report_rounds(config: SelfImproveConfig, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write `result.json` and `report.html`.

    Returns:
        The result as JSON.
    """
    output, result, backend = Path(config.output), summarise(config, rounds), build_backend(config)
    rounds_rows = result["rounds"]
    last, xs = rounds_rows[-1], [row["round"] for row in rounds_rows]
    curves = [
        Figure("Success on held-out prompts", _curve("share", xs, {
            "test": [row["success"]["value"] for row in rounds_rows],
            "first round's prompts": [row["first round's prompts"]["value"] for row in rounds_rows],
        })),
        Figure("Distance from the first learner", _curve(backend.distance, xs, {
            "test": [row["distance"] for row in rounds_rows],
        })),
    ]  # fmt: skip
    samples, pictures = backend.show(*_examples(config, rounds))
    report = RunReport(
        title="Self-improvement",
        summary=[
            self_improve_headline({"evaluation": result}),
            ("success before", show(rounds_rows[0]["success"])),
            (f"after {last['round']} rounds", show(last["success"])),
            ("gained", show(last["gained"])),
            ("groups from progress", str(last.get("groups", 0))),
            ("updates", f"{len(result['updates'])}, {sum(u['kept'] for u in result['updates'])} kept by the gate"),
        ],
        notices=result["alarms"],
        tables=[_rounds(backend, rounds_rows), *_categories(result["categories"])],
        samples=samples,
        details=[_gates(result["updates"])],
        figures=[*curves, *pictures],
    )
    write_result(output, config, result, report)
    return result


def _curve(unit: str, xs: Sequence[int], series: dict[str, list[float]]) -> str:
    return line_chart("", "round", unit, {name: (xs, ys) for name, ys in series.items()})


def _updates(config: SelfImproveConfig) -> list[dict[str, Any]]:
    updates, number = [], 1
    while (file := update_folder(Path(config.output), number) / RESULT).exists():
        record = json.loads(file.read_text(encoding="utf-8"))
        updates.append({"update": number, "kept": record["served"] == number, **record})
        number += 1
    return updates


def _by_category(config: SelfImproveConfig, first_shares: Floats, last_shares: Floats) -> dict[str, Any]:
    """Success by category of the test prompts, before the first round and after the last, with the gain."""
    parts = read_splits(Path(config.output))
    category_of = np.array([parts["categories"].get(name, "") for name in parts["test"]])
    by_category = {}
    for category in sorted({*category_of.tolist()} - {""}):
        category_first, category_last = first_shares[category_of == category], last_shares[category_of == category]
        numbers = range(len(category_first))
        by_category[category] = {
            "prompts": len(category_first),
            "before": bootstrap_mean(category_first, numbers).to_json(),
            "after": bootstrap_mean(category_last, numbers).to_json(),
            "gained": difference_of_shares(category_last, category_first, numbers).to_json(),
        }
    return by_category


def _categories(by_category: dict[str, Any]) -> list[Table]:
    if not by_category:
        return []
    columns = ("before", "after", "gained")
    rows = [
        (name, str(row["prompts"]), *(show(row[column]) for column in columns)) for name, row in by_category.items()
    ]
    return [Table("By category", ("category", "prompts", *columns), rows, "Test prompts, which are never trained on.")]


def _examples(config: SelfImproveConfig, rounds: Sequence[dict[str, Any]]) -> tuple[list[str], list[str], list[str]]:
    """Test prompts with their first and last answers; the categories take turns."""
    parts = read_splits(Path(config.output))
    category_counts: Counter[str] = Counter()
    turns = []
    for index, name in enumerate(parts["test"]):
        category = parts["categories"].get(name, "")
        category_counts[category] += 1
        turns.append((category_counts[category], category, index))
    indices = [index for _, _, index in sorted(turns)[:N_EXAMPLES]]
    prompts = list(parts["test"].values())
    columns = (prompts, rounds[0]["test"]["answers"], rounds[-1]["test"]["answers"])
    shown_prompts, first_answers, last_answers = ([column[index] for index in indices] for column in columns)
    return shown_prompts, first_answers, last_answers


def _rounds(backend: LearnerBackend, rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("success", "gained", "first round's prompts")
    count_columns = ("judgements", "groups", "seconds", "waited")
    return Table(
        "By round",
        ("round", "served", *columns, backend.amount, backend.distinct, backend.distance, *count_columns),
        [
            (
                str(row["round"]),
                f"update {row['served']}",
                *(show(row[name]) for name in columns),
                *(f"{row[name]:.3g}" for name in COLLAPSE_METRICS),
                *(f"{row[name]:.0f}" if name in row else "" for name in count_columns),
            )
            for row in rows
        ],
        "The prompts are never trained on, except the first round's. 95 % intervals over prompts; gained is paired "
        "with the state before the first round. The verdicts are those without flipped conditions. Seconds count from "
        "the round's last start; waited is the time of them in which the learner did nothing until updates had ended.",
    )


def _gates(updates: Sequence[dict[str, Any]]) -> Table:
    return Table(
        "Updates, and the gate",
        ("update", "from", "first learner", "served until then", "new", "p of new", "served from then on", "seconds"),
        [
            (
                str(update["update"]),
                str(update["from"]),
                *(f"{update['gate'][str(n)]:.3f}" for n in (0, update["from"], update["update"])),
                _p_value(update),
                str(update["served"]),
                f"{update['seconds']:.0f}",
            )
            for update in updates
        ],
        "Shares of satisfying answers to the gate's prompts, by the learner's verifier. p is one-sided and paired, of "
        "the new learner against the one served until then; a learner with a small enough p is served from then on.",
    )


def _p_value(update: dict[str, Any]) -> str:
    """The p-value of an update's learner as text; updates of earlier versions have none."""
    p_values = update.get("gate_p", {})
    return f"{p_values[str(update['update'])]:.3f}" if p_values else "not tested"
