"""The report page of the tool-calling recipe."""

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


def write_result(folder: Path, config: ToolCallingConfig, results: Mapping[str, StageResult]) -> None:
    """Write `result.json` and `report.html`."""
    write_atomically(folder / "result.json", json.dumps(dict(results), indent=2, ensure_ascii=False) + "\n")
    data, evaluation = results["data"], results["evaluation"]
    report = RunReport(
        title="Tool calling",
        summary=[
            tool_calling_headline(results),
            *((f"questions, {part}", str(sum(counts.values()))) for part, counts in data["questions"].items()),
            ("variants of training questions", str(data["variants"])),
            ("steps of trajectories", str(data["trajectories"])),
            ("left out: no right answer can be written", str(data["no right answer"])),
            *((f"{name}, left out", reason) for name, reason in data["left_out"].items()),
            *_pairs(results),
        ],
        tables=[
            _shares(evaluation["models"]),
            *(_added(baseline, d) for baseline, d in evaluation["differences"].items()),
        ],
        details=[_faults(evaluation["faults"], evaluation["cut"]), _latencies(evaluation["edge"])],
        config_yaml=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    write_report(folder / "report.html", report)


def _pairs(results: Mapping[str, StageResult]) -> list[tuple[str, str]]:
    if "pairs" not in results:
        return []
    return [
        ("groups of right and wrong answers", str(results["pairs"]["groups"])),
        *((f"rejected: {kind}", str(n)) for kind, n in results["pairs"]["rejected"].items()),
        ("read by people", ", ".join(f"{name} {n}" for name, n in results["review"]["verdicts"].items())),
        ("right answer predicted from words alone in", show(results["review"]["audit"]["words"])),
    ]


def _shares(models: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = list(next(iter(models.values())))
    return Table(
        "Right calls on functions that were never trained on",
        ("", *columns),
        [(name, *(show(shares[column]) for column in columns)) for name, shares in models.items()],
        "By the Berkeley leaderboard's rules. 95 % intervals over seeds and questions; for the base over questions.",
    )


def _added(baseline: str, differences: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    names = next(iter(differences.values()))
    rows = {name: [difference[name] for difference in differences.values()] for name in names}
    return Table(
        f"Compared with {baseline}",
        ("", *(column for name in differences for column in (name, ""))),
        [
            (name, *(cell for difference in row for cell in (show(difference), difference["outcome"])))
            for name, row in rows.items()
        ],
        "Paired over seeds and questions; the outcome is corrected (Holm) for the number of paths.",
    )


def _faults(faults: Mapping[str, Mapping[str, int]], truncated: Mapping[str, int]) -> Table:
    kinds = list(dict.fromkeys(kind for counts in faults.values() for kind in counts))
    return Table(
        "Faults of wrong answers",
        ("", *kinds, "cut by the limit"),
        [
            (name, *(str(counts.get(kind, 0)) for kind in kinds), str(truncated[name]))
            for name, counts in faults.items()
        ],
        "For the first seed's model. The last column counts answers that the token limit cut, right or wrong.",
    )


def _latencies(edge: Mapping[str, Mapping[str, Any]]) -> Table:
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
    costs = ("median latency", "95th percentile", "tokens per second", "peak memory", "above the empty process")
    return Table(
        "Latency and memory on this machine",
        ("", "right calls", "weights", *costs),
        rows,
        "For the first seed's model, one question at a time, in a subprocess. The memory above the empty process "
        "includes libraries that load with the first model.",
    )
