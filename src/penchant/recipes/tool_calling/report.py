"""The tool-calling recipe's page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from penchant.evaluation.files import write_atomically
from penchant.evaluation.report import RunReport, Table, show, write_report
from penchant.recipes.headline import tool_calling_headline
from penchant.recipes.stages import StageResult
from penchant.recipes.tool_calling.config import ToolCallingConfig


def write_result(folder: Path, config: ToolCallingConfig, found: Mapping[str, StageResult]) -> None:
    """`result.json` and `report.html`."""
    write_atomically(folder / "result.json", json.dumps(dict(found), indent=2, ensure_ascii=False) + "\n")
    data, measured = found["data"], found["evaluation"]
    report = RunReport(
        title="Tool calling",
        summary=[
            tool_calling_headline(found),
            *((f"questions, {part}", str(sum(counts.values()))) for part, counts in data["questions"].items()),
            ("variants of training questions", str(data["variants"])),
            ("steps of trajectories", str(data["trajectories"])),
            ("left out: no right answer can be written", str(data["no right answer"])),
            *((f"{name}, left out", why) for name, why in data["left_out"].items()),
            *_pairs(found),
        ],
        tables=[_shares(measured["models"]), *(_added(before, d) for before, d in measured["differences"].items())],
        details=[_faults(measured["faults"], measured["cut"]), _edges(measured["edge"])],
        config_yaml=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    write_report(folder / "report.html", report)


def _pairs(found: Mapping[str, StageResult]) -> list[tuple[str, str]]:
    if "pairs" not in found:
        return []
    return [
        ("groups of right and wrong answers", str(found["pairs"]["groups"])),
        *((f"rejected: {kind}", str(n)) for kind, n in found["pairs"]["rejected"].items()),
        ("read by people", ", ".join(f"{name} {n}" for name, n in found["review"]["verdicts"].items())),
        ("words alone tell the right answer in", show(found["review"]["audit"]["words"])),
    ]


def _shares(models: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = list(next(iter(models.values())))
    return Table(
        "Right calls on functions that were never trained on",
        ("", *columns),
        [(name, *(show(shares[column]) for column in columns)) for name, shares in models.items()],
        "By the Berkeley leaderboard's rules. 95 % intervals over seeds and questions; of the base, over questions.",
    )


def _added(before: str, differences: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    names = next(iter(differences.values()))
    rows = {name: [each[name] for each in differences.values()] for name in names}
    return Table(
        f"Over {before}",
        ("", *(column for name in differences for column in (name, ""))),
        [(name, *(cell for each in row for cell in (show(each), each["outcome"]))) for name, row in rows.items()],
        "Paired over seeds and questions; the outcome is corrected (Holm) for the number of paths.",
    )


def _faults(faults: Mapping[str, Mapping[str, int]], cut: Mapping[str, int]) -> Table:
    kinds = list(dict.fromkeys(kind for counts in faults.values() for kind in counts))
    return Table(
        "What is wrong with wrong answers",
        ("", *kinds, "cut by the limit"),
        [(name, *(str(counts.get(kind, 0)) for kind in kinds), str(cut[name])) for name, counts in faults.items()],
        "Of the first seed's model. Answers that the limit of tokens cut, right or wrong, stand in the last column.",
    )


def _edges(edge: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        (
            f"{name}, {kind}",
            show(row["right"]),
            f"{row['weight_bytes'] / 2**20:.1f} MiB",
            f"{row['seconds']['median'] * 1000:.0f} ms",
            f"{row['seconds']['p95'] * 1000:.0f} ms",
            f"{row['tokens_per_second']:.0f}",
            f"{row['peak_bytes'] / 2**20:.0f} MiB",
            f"{row['above_bytes'] / 2**20:.0f} MiB",
        )
        for name, kinds in edge.items()
        for kind, row in kinds.items()
    ]
    costs = ("an answer", "95th percentile", "tokens a second", "peak memory", "above the empty process")
    return Table(
        "On this machine",
        ("", "right calls", "weights", *costs),
        rows,
        "Of the first seed's model, one question at a time, in a process of its own; libraries that load with the "
        "first model are in what lies above.",
    )
