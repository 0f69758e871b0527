"""What a comparison found, as numbers, a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from workloads import Workload

Report = dict[str, Any]
"""What a side wrote; see measuring.py."""


@dataclass(frozen=True)
class Spread:
    """Of one number over the alternations."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class SideMeasurement:
    """One side of a workload.

    Attributes:
        rounds: what it found in each alternation.
        ours: what the side of Penchant it is compared with found in the same alternation.
        warmup: steps at the beginning that do not count.
        flops: the counted steps need at least.
        tokens: of the counted steps, a prompt once for each of its candidates; the same number for all sides.
        own_order: its steps hold other rows than the others' do, so its tokens are those it saw.
    """

    side: str
    compared_with: str
    rounds: list[Report]
    ours: list[Report]
    warmup: int
    flops: int
    tokens: int
    own_order: bool
    loss_difference: float

    def rates(self, clock: str, rounds: list[Report] | None = None) -> list[float]:
        """Tokens a second of each alternation, by ``seconds`` or ``cpu_seconds``."""
        uses_own_tokens = rounds is None and self.own_order
        rates = []
        for report in self.rounds if rounds is None else rounds:
            steps = report["steps"][self.warmup :]
            tokens = sum(step["tokens"] for step in steps) if uses_own_tokens else self.tokens
            rates.append(tokens / sum(step[clock] for step in steps))
        return rates

    def ratios(self, clock: str) -> Spread:
        """How many times as fast Penchant is, alternation by alternation."""
        pairs = zip(self.rates(clock, self.ours), self.rates(clock), strict=True)
        return Spread.from_values([ours / theirs for ours, theirs in pairs])

    @property
    def loss_range(self) -> float:
        """Between the least and the greatest loss of the steps: what agreement is to be held against."""
        losses = [step["loss"] for step in self.rounds[0]["steps"]]
        return max(losses) - min(losses)

    @property
    def peak_mb(self) -> Spread:
        return Spread.from_values([report["peak_mb"] for report in self.rounds])

    @property
    def memory_ratio(self) -> float:
        """Penchant's peak over the side's."""
        pairs = zip(self.ours, self.rounds, strict=True)
        return median(ours["peak_mb"] / theirs["peak_mb"] for ours, theirs in pairs)

    def share(self, bound_rate: float, clock: str = "seconds") -> float | None:
        """Of the tokens a second the bound allows; None where the counted steps are not those it was counted for."""
        return None if self.own_order else median(self.rates(clock)) / bound_rate


@dataclass(frozen=True)
class Result:
    """All sides of a workload.

    Attributes:
        matmul: the machine and its matrix rate; see matmul_side.py.
    """

    workload: Workload
    steps: int
    threads: int
    matmul: dict[str, Any]
    tolerance: float
    sides: list[SideMeasurement]

    def bound_rate(self, side: SideMeasurement) -> float:
        """Tokens a second at the machine's full matrix rate."""
        return side.tokens * self.matmul["flops_per_second"] / side.flops

    def cpu_bound(self, side: SideMeasurement) -> float:
        """Tokens a second of CPU: the machine's rate was had with all threads."""
        return self.bound_rate(side) / (self.threads if self.workload.device == "cpu" else 1)

    def summary(self) -> dict[str, Any]:
        """Everything the table says and the losses, small enough to keep."""
        sides = {}
        for side in self.sides:
            sides[side.side] = {
                "tokens_per_second": asdict(Spread.from_values(side.rates("seconds"))),
                "tokens_per_cpu_second": asdict(Spread.from_values(side.rates("cpu_seconds"))),
                "peak_mb": asdict(side.peak_mb),
                "bound_tokens_per_second": self.bound_rate(side),
                "share_of_bound": side.share(self.bound_rate(side)),
                "share_of_bound_by_cpu": side.share(self.cpu_bound(side), "cpu_seconds"),
                "compared_with": side.compared_with,
                "times_as_fast": asdict(side.ratios("seconds")),
                "times_as_fast_by_cpu": asdict(side.ratios("cpu_seconds")),
                "memory_ratio": side.memory_ratio,
                "largest_loss_difference": side.loss_difference,
                "losses_move_by": side.loss_range,
                "versions": side.rounds[0]["versions"],
                "threads": side.rounds[0]["threads"],
                "losses": [round(step["loss"], 6) for step in side.rounds[0]["steps"]],
                "seconds": [[round(s["seconds"], 4) for s in report["steps"]] for report in side.rounds],
                "cpu_seconds": [[round(s["cpu_seconds"], 4) for s in report["steps"]] for report in side.rounds],
            }
        return {
            "workload": asdict(self.workload),
            "counted_steps": self.steps,
            "alternations": len(self.sides[0].rounds),
            "threads": self.threads,
            "machine": self.matmul,
            "tolerance": self.tolerance,
            "sides": sides,
        }


def header(results: Sequence[Result], date: str) -> str:
    """Date, machine and versions."""
    result = results[0]
    versions: dict[str, dict[str, str]] = {}
    for side in result.sides:
        versions.setdefault(side.side.split("_")[0], side.rounds[0]["versions"])
    lines = [f"# {date}; {result.matmul['device']}, {result.matmul['cores']} cores, {result.threads} threads"]
    lines += [
        f"# {side}: {', '.join(f'{k} {v}' for k, v in libraries.items())}" for side, libraries in versions.items()
    ]
    lines += [
        f"# {result.steps} counted steps, {len(result.sides[0].rounds)} alternations; medians, range in brackets",
        "# tokens: a prompt counted once for each of its candidates, padding not",
        "# x: how many times as fast as the side Penchant's own of the same work is (the one it is compared with)",
    ]
    return "\n".join(lines)


def text(results: Sequence[Result]) -> str:
    """The tables."""
    return "\n\n".join(_table(result) for result in results)


def _table(result: Result) -> str:
    rate = result.matmul["flops_per_second"]
    rows = [
        (
            *("side", "tokens/s", "tokens/CPU-s", "peak MB", "of bound", "by CPU", "x, by the clock", "x, by CPU time"),
            *("compared with", "memory, Penchant's/its", "loss differs by"),
        )
    ]
    for side in result.sides:
        shares = [side.share(result.bound_rate(side)), side.share(result.cpu_bound(side), "cpu_seconds")]
        rows.append(
            (
                side.side,
                _spread_text(Spread.from_values(side.rates("seconds")), ".0f"),
                f"{median(side.rates('cpu_seconds')):.0f}",
                f"{side.peak_mb.median:.0f}",
                *("-" if share is None else f"{share:.0%}" for share in shares),
                _spread_text(side.ratios("seconds"), ".2f"),
                _spread_text(side.ratios("cpu_seconds"), ".2f"),
                side.compared_with,
                f"{side.memory_ratio:.2f}",
                f"{side.loss_difference:.1e}" + (" (means)" if side.own_order else ""),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    bounded_side = next(side for side in result.sides if not side.own_order)
    summary = (
        f"losses agree within {result.tolerance:.0e} at every step, and move by {bounded_side.loss_range:.0e}; "
        f"matrix products reach {rate / 1e9:.0f} GFLOP/s in {result.workload.dtype}, which bounds "
        f"{bounded_side.side} at {result.bound_rate(bounded_side):.0f} tokens/s"
    )
    return "\n".join([f"{result.workload.name}: {result.workload.asks}", summary, *lines])


def _spread_text(summary: Spread, form: str) -> str:
    return f"{summary.median:{form}} [{summary.lowest:{form}}, {summary.highest:{form}}]"


def write(results: Sequence[Result], folder: Path, name: str, date: str) -> None:
    """NAME.txt, NAME.json and NAME.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(f"{header(results, date)}\n\n{text(results)}\n")
    document = {"date": date, "results": [result.summary() for result in results]}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    _draw(results, folder / f"{name}.svg")


def _draw(results: Sequence[Result], file: Path) -> None:
    """Tokens a second (spread as a line, the bound dotted) and peak memory, a row of bars for each workload."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heights = [0.9 + 0.32 * len(result.sides) for result in results]
    figure, axes = plt.subplots(
        len(results), 2, figsize=(9, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for (speed, memory), result in zip(axes, results, strict=True):
        names = [side.side for side in result.sides]
        colours = ["#2b6cb0" if name.startswith("penchant") else "#a0aec0" for name in names]
        rates = [Spread.from_values(side.rates("seconds")) for side in result.sides]
        errors = [[r.median - r.lowest for r in rates], [r.highest - r.median for r in rates]]
        speed.barh(names, [r.median for r in rates], xerr=errors, color=colours, ecolor="#1a202c", capsize=2)
        bounded_side = next(side for side in result.sides if not side.own_order)
        speed.axvline(result.bound_rate(bounded_side), color="#1a202c", linestyle=":", linewidth=1)
        speed.set_title(f"{result.workload.name}: tokens/s (dotted: FLOP bound)", fontsize=9, loc="left")
        memory.barh(names, [side.peak_mb.median for side in result.sides], color=colours)
        memory.set_title("peak MB", fontsize=9, loc="left")
        memory.set_yticklabels([])
        for axis in (speed, memory):
            axis.invert_yaxis()
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
    # No date in the file, so that the same numbers give the same picture.
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
