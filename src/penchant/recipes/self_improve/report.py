"""What the rounds came to: success by round, alarms, updates; the page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from penchant.evaluation.figures import line_chart
from penchant.evaluation.files import write_atomically
from penchant.evaluation.report import Figure, RunReport, Table, show, write_report
from penchant.evaluation.statistics import Estimate, Floats, bootstrap_mean, difference_of_shares
from penchant.recipes.headline import self_improve_headline
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.learner import folder_of
from penchant.recipes.self_improve.loop import stopped
from penchant.recipes.self_improve.media import medium_of
from penchant.recipes.self_improve.medium import Medium
from penchant.recipes.self_improve.parts import read_parts

SIGNS = ("amount", "distinct", "distance")
STUCK = 2
"""Rounds in a row without a better test are an alarm."""
NARROW, FAR = 0.5, 2.0
"""Share of the first learner's distinctness, and times its answers' amount, beyond which is an alarm; also times the
distance of the best learner, once none is better."""
SHOWN = 12
"""Prompts whose answers before and after are on the page, the categories in turn."""


def summarise(config: SelfImproveConfig, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success by round and by category, with intervals over prompts; what was gained, alarms, and every update."""
    medium = medium_of(config)
    tests = [np.array(each["test"]["satisfied"]) for each in rounds]
    earlier = [np.array(each["first round"]["satisfied"]) for each in rounds]
    return {
        "rounds": [
            {
                "round": each["round"],
                "served": each["served"],
                "success": bootstrap_mean(test, range(len(test))).to_json(),
                "gained": _gained(each["served"] == rounds[0]["served"], test, tests[0]).to_json(),
                "first round's prompts": bootstrap_mean(old, range(len(old))).to_json(),
                **{key: each["test"][key] for key in SIGNS},
                **{key: each[key] for key in ("judgements", "groups", "swaps", "seconds", "waited") if key in each},
            }
            for each, test, old in zip(rounds, tests, earlier, strict=True)
        ],
        "signs": {name: getattr(medium, name) for name in SIGNS},
        "categories": _by_category(config, tests[0], tests[-1]),
        "alarms": [*([why] if (why := stopped(config, rounds)) else []), *alarms(medium, rounds)],
        "updates": _updates(config),
    }


def _gained(same: bool, ours: Floats, first: Floats) -> Estimate:
    """Paired by prompt; the first learner gains nothing on itself, exactly."""
    if same:
        return Estimate(0.0, 0.0, 0.0, len(ours))
    return difference_of_shares(ours, first, range(len(ours)))


def alarms(medium: Medium, rounds: Sequence[dict[str, Any]]) -> list[str]:
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
            f"answers have become alike: {medium.distinct} {last['distinct']:.2f}, at first {first['distinct']:.2f}"
        )
    if not first["amount"] / FAR <= last["amount"] <= first["amount"] * FAR:
        found.append(f"answers have changed: {medium.amount} {last['amount']:.3g}, at first {first['amount']:.3g}")
    away = [each["test"]["distance"] for each in rounds]
    # Where none was better than the first, which is no distance from itself: of the nearest other.
    there = away[best] or min((distance for distance in away if distance), default=0.0)
    if since and there and away[-1] > FAR * there:
        at = f"{there:.3g} {'at its best' if away[best] else 'at first'}"
        found.append(f"far from the first learner for nothing: {medium.distance} {away[-1]:.3g}, {at}")
    unjudged = sum(each.get("unjudged", 0) + each["test"]["unjudged"] for each in rounds)
    if unjudged:
        found.append(f"the verifier gave no verdict on {unjudged} answers: none of them is learnt, or counts as right")
    old = [float(np.mean(each["first round"]["satisfied"])) for each in rounds]
    if len(old) > 1 and old[-1] < max(old) - 0.1:
        found.append(f"the first round's prompts are forgotten: {old[-1]:.2f}, at best {max(old):.2f}")
    return found


def write_result(config: SelfImproveConfig, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`result.json` and `report.html`."""
    output, found, medium = Path(config.output), summarise(config, rounds), medium_of(config)
    write_atomically(output / "result.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    told = found["rounds"]
    last, xs = told[-1], [each["round"] for each in told]
    curves = [
        Figure("Success on held-out prompts", _curve("share", xs, {
            "test": [each["success"]["value"] for each in told],
            "first round's prompts": [each["first round's prompts"]["value"] for each in told],
        })),
        Figure("Distance from the first learner", _curve(medium.distance, xs, {
            "test": [each["distance"] for each in told],
        })),
    ]  # fmt: skip
    samples, pictures = medium.show(*_examples(config, rounds))
    report = RunReport(
        title="Self-improvement",
        summary=[
            self_improve_headline({"evaluation": found}),
            ("success before", show(told[0]["success"])),
            (f"after {last['round']} rounds", show(last["success"])),
            ("gained", show(last["gained"])),
            ("groups that progress made", str(last.get("groups", 0))),
            ("updates", f"{len(found['updates'])}, {sum(u['kept'] for u in found['updates'])} kept by the gate"),
        ],
        notices=found["alarms"],
        tables=[_rounds(medium, told), *_categories(found["categories"])],
        samples=samples,
        details=[_gates(found["updates"])],
        figures=[*curves, *pictures],
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


def _by_category(config: SelfImproveConfig, first: Floats, last: Floats) -> dict[str, Any]:
    """Of each category of the test's prompts, before the first round and after the last."""
    parts = read_parts(Path(config.output))
    of = np.array([parts["categories"].get(name, "") for name in parts["test"]])
    found = {}
    for category in sorted({*of.tolist()} - {""}):
        before, after = first[of == category], last[of == category]
        numbers = range(len(before))
        found[category] = {
            "prompts": len(before),
            "before": bootstrap_mean(before, numbers).to_json(),
            "after": bootstrap_mean(after, numbers).to_json(),
            "gained": difference_of_shares(after, before, numbers).to_json(),
        }
    return found


def _categories(found: dict[str, Any]) -> list[Table]:
    if not found:
        return []
    columns = ("before", "after", "gained")
    rows = [(name, str(each["prompts"]), *(show(each[column]) for column in columns)) for name, each in found.items()]
    return [Table("By category", ("category", "prompts", *columns), rows, "Of the prompts never tuned on.")]


def _examples(config: SelfImproveConfig, rounds: Sequence[dict[str, Any]]) -> tuple[list[str], list[str], list[str]]:
    """Prompts of the test, and their answers before and after; the categories in turn."""
    parts = read_parts(Path(config.output))
    seen: Counter[str] = Counter()
    turns = []
    for place, name in enumerate(parts["test"]):
        category = parts["categories"].get(name, "")
        seen[category] += 1
        turns.append((seen[category], category, place))
    places = [place for _, _, place in sorted(turns)[:SHOWN]]
    prompts = list(parts["test"].values())
    said = (prompts, rounds[0]["test"]["answers"], rounds[-1]["test"]["answers"])
    first, before, after = ([each[place] for place in places] for each in said)
    return first, before, after


def _rounds(medium: Medium, told: Sequence[dict[str, Any]]) -> Table:
    columns, counted = ("success", "gained", "first round's prompts"), ("judgements", "groups", "seconds", "waited")
    return Table(
        "By round",
        ("round", "served", *columns, medium.amount, medium.distinct, medium.distance, *counted),
        [
            (
                str(each["round"]),
                f"update {each['served']}",
                *(show(each[name]) for name in columns),
                *(f"{each[name]:.3g}" for name in SIGNS),
                *(f"{each[name]:.0f}" if name in each else "" for name in counted),
            )
            for each in told
        ],
        "Prompts are never tuned on, but for the first round's. 95 % intervals over prompts; gained is paired with "
        "before the first round. The verdicts are as the verifier's would be if none were turned wrong. Seconds are "
        "those since the round was last gone on with; the learner waited in the last of them for updates to end.",
    )


def _gates(updates: Sequence[dict[str, Any]]) -> Table:
    return Table(
        "Updates, and the gate",
        ("update", "from", "first learner", "served until then", "new", "p of new", "served from then on", "seconds"),
        [
            (
                str(each["update"]),
                str(each["from"]),
                *(f"{each['gate'][str(n)]:.3f}" for n in (0, each["from"], each["update"])),
                _p_value(each),
                str(each["served"]),
                f"{each['seconds']:.0f}",
            )
            for each in updates
        ],
        "Shares of the gate's prompts that satisfy the verifier the learner is judged by. p is one-sided and paired, "
        "of the new learner against the one served until then; where it, or the first learner's, is small enough, "
        "that one is served from then on.",
    )


def _p_value(update: dict[str, Any]) -> str:
    """Of an update's learner; updates of earlier versions have none."""
    p_values = update.get("gate_p", {})
    return f"{p_values[str(update['update'])]:.3f}" if p_values else "not tested"
