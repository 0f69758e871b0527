"""The verb that says what a run will take before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penchant.cli.output import Count, Json, print_result

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from penchant.planning.plan import Forecast, Plan

MEMORY = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer's moments",
    "activations": "activations, heaviest micro-batch",
    "head": "output head's working memory",
    "reference_pass": "while references read",
    "training": "while training",
    "step": "in the optimizer's step",
    "held_out": "while held-out groups are read",
    "allocator": "allocator's holes",
    "baseline": "process, libraries and data",
}
PHASES = 5
"""Entries of MEMORY that are parts; phases follow, then what comes on top of the highest."""


def plan(run: Path, *overrides: str, memory_mb: Count | None = None, as_json: Json = False) -> None:
    """Predict a run's memory and time on this machine, before any weights are read; propose what makes it fit.

    Parameters
    ----------
    run
        The run's YAML file.
    overrides
        Dotted keys of the configuration, as in training.token_budget=4096.
    memory_mb
        Memory to fit into; what the device has if not given.
    """
    from penchant.config.objective import without_code
    from penchant.config.run import load_config
    from penchant.planning.plan import plan as plan_run

    with without_code():
        config = load_config(run, overrides)
        result = plan_run(config, available=memory_mb and memory_mb << 20)
    print_result(result.to_json(), as_json, None if as_json else render(result))


def render(plan: Plan) -> Group:
    """Two tables and a few lines."""
    from rich.console import Group
    from rich.table import Table

    memory = Table(title=f"memory on {plan.device}, MB", title_justify="left")
    memory.add_column("")
    memory.add_column("predicted", justify="right")
    for place, (name, words) in enumerate(MEMORY.items()):
        value = getattr(plan.forecast.memory, name)
        if value or place < PHASES:
            memory.add_row(words, f"{value / 2**20:,.0f}")
        if place in (PHASES - 1, PHASES + 3):
            memory.add_section()
    memory.add_section()
    memory.add_row("peak", f"{plan.forecast.memory.peak / 2**20:,.0f}")
    memory.add_row("available", f"{plan.forecast.available / 2**20:,.0f}")
    parts: list[Table | str] = [memory, *lines(plan)]
    if plan.proposals:
        parts.append(proposals(plan.proposals))
    return Group(*parts)


def lines(plan: Plan) -> list[str]:
    """What the table does not hold."""
    now = plan.forecast
    cuts = f"{plan.steps:,} steps of {plan.micro_batches:.1f} micro-batches, {plan.tokens:,} tokens"
    said = [cuts]
    if now.step_seconds is not None:
        phases = ", ".join(f"{name.replace('_', ' ')} {spell(value)}" for name, value in now.seconds.items() if value)
        said.append(f"{spell(now.total_seconds)}: {phases}; {now.step_seconds:.3g} s a step")
    if now.fits:
        said.append("it fits")
    else:
        said.append("it does not fit" + ("; it would with:" if plan.proposals else ", and nothing known here would do"))
    return [*plan.notes, *said]


def proposals(found: list[Forecast]) -> Table:
    """A row for each."""
    from rich.table import Table

    table = Table()
    table.add_column("set", overflow="fold")
    table.add_column("peak MB", justify="right")
    table.add_column("time", justify="right")
    for each in found:
        table.add_row(" ".join(each.changes), f"{each.memory.peak / 2**20:,.0f}", spell(each.total_seconds))
    return table


def spell(seconds: float | None) -> str:
    """A duration as people say it."""
    if seconds is None:
        return "not predicted"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
