"""What the rounds came to: success by round, alarms, updates; the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from penchant.evaluation.figures import line_chart
from penchant.evaluation.files import write_atomically
from penchant.evaluation.report import Figure, RunReport, Table, show, write_report
from penchant.evaluation.statistics import bootstrap_mean
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.learner import folder_of

STUCK = 2
"""Rounds in a row without a better test are an alarm."""
NARROW, FAR = 0.5, 2.0
"""Shares of the first learner's distinct pairs of words, and times its length, beyond which is an alarm."""


def summarise(config: SelfImproveConfig, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success by round with intervals over prompts, what was gained, alarms, and every update."""
    tests = [np.array(each["test"]["satisfied"]) for each in rounds]
    numbers = range(len(tests[0]))
    earlier = [np.array(each["first round"]["satisfied"]) for each in rounds]
    return {
        "rounds": [
            {
                "round": each["round"],
                "served": each["served"],
                "success": bootstrap_mean(test, numbers).to_json(),
                "gained": bootstrap_mean(test - tests[0], numbers).to_json(),
                "first round's prompts": bootstrap_mean(old, range(len(old))).to_json(),
                **{key: each["test"][key] for key in ("words", "distinct", "kl")},
                **{key: each[key] for key in ("judgements", "groups", "swaps") if key in each},
            }
            for each, test, old in zip(rounds, tests, earlier, strict=True)
        ],
        "alarms": alarms(rounds),
        "updates": _updates(config),
    }


def alarms(rounds: Sequence[dict[str, Any]]) -> list[str]:
    """What a person should look at, in words."""
    found = []
    success = [float(np.mean(each["test"]["satisfied"])) for each in rounds]
    best, since = 0, 0
    for number, share in enumerate(success):
        best, since = (number, 0) if share > success[best] else (best, since + 1)
    if len(success) > STUCK and since >= STUCK:
        found.append(f"no better on the test since round {best}")
    first, last = rounds[0]["test"], rounds[-1]["test"]
    if last["distinct"] < NARROW * first["distinct"]:
        found.append(
            f"answers have become alike: {last['distinct']:.2f} distinct pairs of words, {first['distinct']:.2f}"
        )
    if not first["words"] / FAR <= last["words"] <= first["words"] * FAR:
        found.append(f"answers are of {last['words']:.0f} words, at first of {first['words']:.0f}")
    old = [float(np.mean(each["first round"]["satisfied"])) for each in rounds]
    if len(old) > 1 and old[-1] < max(old) - 0.1:
        found.append(f"the first round's prompts are forgotten: {old[-1]:.2f}, at best {max(old):.2f}")
    return found


def write_result(config: SelfImproveConfig, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`result.json` and `report.html`."""
    output, found = Path(config.output), summarise(config, rounds)
    write_atomically(output / "result.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    told = found["rounds"]
    last, xs = told[-1], [each["round"] for each in told]
    curves = [
        Figure("Success on held-out prompts", _curve("share", xs, {
            "test": [each["success"]["value"] for each in told],
            "first round's prompts": [each["first round's prompts"]["value"] for each in told],
        })),
        Figure("Distance from the first learner", _curve("nats", xs, {"KL": [each["kl"] for each in told]})),
    ]  # fmt: skip
    report = RunReport(
        title="Self-improvement",
        summary=[
            ("success before", show(told[0]["success"])),
            (f"after {last['round']} rounds", show(last["success"])),
            ("gained", show(last["gained"])),
            ("groups it was tuned on, at most", str(last.get("groups", 0))),
            ("updates", f"{len(found['updates'])}, {sum(u['kept'] for u in found['updates'])} kept by the gate"),
        ],
        notices=found["alarms"],
        tables=[_rounds(told)],
        details=[_gates(found["updates"])],
        figures=curves,
        config_yaml=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    write_report(output / "report.html", report)
    return found


def _curve(unit: str, xs: Sequence[int], series: dict[str, list[float]]) -> str:
    return line_chart("", "round", unit, {name: (xs, ys) for name, ys in series.items()})


def _updates(config: SelfImproveConfig) -> list[dict[str, Any]]:
    found, number = [], 1
    while (file := folder_of(Path(config.output), number) / "result.json").exists():
        told = json.loads(file.read_text(encoding="utf-8"))
        found.append({"update": number, "kept": told["served"] == number, **told})
        number += 1
    return found


def _rounds(told: Sequence[dict[str, Any]]) -> Table:
    columns = ("success", "gained", "first round's prompts")
    return Table(
        "By round",
        ("round", "served", *columns, "words", "distinct", "KL", "judgements", "groups"),
        [
            (
                str(each["round"]),
                f"update {each['served']}",
                *(show(each[name]) for name in columns),
                *(f"{each[name]:.2f}" for name in ("words", "distinct", "kl")),
                *(str(each.get(name, "")) for name in ("judgements", "groups")),
            )
            for each in told
        ],
        "Prompts are never tuned on, but for the first round's. 95 % intervals over prompts; gained is paired with "
        "before the first round. The verdicts are as the verifier's would be if none were turned wrong.",
    )


def _gates(updates: Sequence[dict[str, Any]]) -> Table:
    return Table(
        "Updates, and the gate",
        ("update", "from", "first learner", "served until then", "new", "served from then on", "seconds"),
        [
            (
                str(each["update"]),
                str(each["from"]),
                *(f"{each['gate'][str(n)]:.3f}" for n in (0, each["from"], each["update"])),
                str(each["served"]),
                f"{each['seconds']:.0f}",
            )
            for each in updates
        ],
        "Shares of the gate's prompts that satisfy the verifier the learner is judged by.",
    )
