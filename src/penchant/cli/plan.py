"""The verb that predicts a run's memory and time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penchant.cli.output import Count, Device, Json, device_key, print_result

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from penchant.planning.memory import Memory
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
    "baseline": "process baseline: libraries and data",
    "allocator": "allocator, at most",
}
PHASES = 5
"""Number of entries of MEMORY that are parts; after them come the phases, then overheads of the peak."""


def plan(
    run: Path,
    *overrides: str,
    memory_mb: Count | None = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Predict a run's memory and time on this machine without reading weights, and propose settings that fit.

    Parameters
    ----------
    run
        The run's YAML file.
    overrides
        Dotted keys of the configuration, as in training.token_budget=4096.
    memory_mb
        Memory limit in MB; the device's memory if not given.
    """
    from penchant.config.objective import without_code
    from penchant.config.run import load_config
    from penchant.planning.plan import plan as plan_run

    with without_code():
        config = load_config(run, [*overrides, *device_key("device", device)])
        result = plan_run(config, available=memory_mb and memory_mb << 20)
    print_result(result.to_json(), as_json, None if as_json else render(result))


def render(plan: Plan) -> Group:
    """The plan as a table of memory, lines of text, and a table of proposals."""
    from rich.console import Group
    from rich.table import Table

    memory = Table(title=f"memory on {plan.device}, MB", title_justify="left")
    memory.add_column("")
    memory.add_column("predicted", justify="right")
    for index, (name, words) in enumerate(MEMORY.items()):
        value = getattr(plan.forecast.memory, name)
        if value or index < PHASES:
            memory.add_row(words, f"{value / 2**20:,.0f}")
        if index in (PHASES - 1, PHASES + 3):
            memory.add_section()
    memory.add_section()
    memory.add_row("peak, at most", f"{plan.forecast.memory.peak / 2**20:,.0f}")
    memory.add_row("available", f"{plan.forecast.available / 2**20:,.0f}")
    parts: list[Table | str] = [memory, memory_line(plan.forecast.memory), *lines(plan)]
    if plan.proposals:
        parts.append(proposals(plan.proposals))
    return Group(*parts)


def memory_line(memory: Memory) -> str:
    """The count of tensors, the process's baseline, and how much more the allocator may hold."""
    line = f"tensors {memory.alive / 2**20:,.0f} MB, process baseline {memory.baseline / 2**20:,.0f} MB"
    if not memory.allocator:
        return line
    return f"{line}, up to {100 * memory.allocator / (memory.alive + memory.baseline):.0f} % more for the allocator"


def lines(plan: Plan) -> list[str]:
    """Lines below the table of memory: steps, time, whether the run fits, and notes."""
    forecast = plan.forecast
    cuts = f"{plan.steps:,} steps of {plan.micro_batches:.1f} micro-batches, {plan.tokens:,} tokens"
    lines_shown = [cuts]
    if forecast.step_seconds is not None:
        phases = ", ".join(
            f"{name.replace('_', ' ')} {format_duration(value)}" for name, value in forecast.seconds.items() if value
        )
        lines_shown.append(f"{format_duration(forecast.total_seconds)}: {phases}; {forecast.step_seconds:.3g} s a step")
    if forecast.fits:
        lines_shown.append("it fits")
    else:
        lines_shown.append(
            "it does not fit" + ("; it would with:" if plan.proposals else ", and no known setting makes it fit")
        )
    return [*plan.notes, *lines_shown]


def proposals(forecasts: list[Forecast]) -> Table:
    """A table of proposed settings with their peak memory and time."""
    from rich.table import Table

    table = Table()
    table.add_column("set", overflow="fold")
    table.add_column("peak MB", justify="right")
    table.add_column("time", justify="right")
    for forecast in forecasts:
        table.add_row(
            " ".join(forecast.changes), f"{forecast.memory.peak / 2**20:,.0f}", format_duration(forecast.total_seconds)
        )
    return table


def format_duration(seconds: float | None) -> str:
    """A duration in s, min or h."""
    if seconds is None:
        return "not predicted"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
