"""Are the card's numbers right? `gpu_checks.py` row by row, and two runs that must give the same bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import gpu_checks
import torch
from measuring import Recorder, Task
from penchant_side import train_and_record

from gpu_parts.setting import Figures, Item, Setting
from gpu_parts.training import GROUPS, PAIRS

if TYPE_CHECKING:
    from penchant.training.loop import Loop


class WrongNumbers(Exception):
    """A check's numbers are further apart than is allowed.

    Attributes:
        figures: those of the check.
    """

    def __init__(self, figures: Figures) -> None:
        super().__init__(f"further apart than allowed: {', '.join(figures['wrong'])}")
        self.figures = figures


def correctness_items(setting: Setting) -> Mapping[str, Item]:
    """Attention against float64, models in float32 and bfloat16, equal bits of two runs, runs against the CPU's."""
    device, row_limit, families = torch.device(setting.device), None, None
    if setting.tiny:
        row_limit, families = 3, {"llama-tied"}
    items: dict[str, Item] = {
        "attention against float64": lambda: judged(
            islice(gpu_checks.attention_rows(device, gpu_checks.counted_kernels()), row_limit)
        ),
        "models": lambda: judged(gpu_checks.model_rows(device, gpu_checks.counted_kernels(), families)),
        "same bits, pairs": lambda: same_bits(setting, PAIRS),
    }
    if not setting.tiny:
        items["same bits, groups"] = lambda: same_bits(setting, GROUPS)
        items["runs against the CPU"] = lambda: judged(gpu_checks.run_rows(device, setting.work / "checks"))
    return items


def judged(checked: Iterable[gpu_checks.Row]) -> Figures:
    """The number of rows of a check, and the row nearest to what is allowed.

    Raises:
        WrongNumbers: some are further apart than allowed.
    """
    rows = [*checked]
    # `not <=`: what is not a number is no agreement.
    wrong = [row_text(row) for row in rows if not row[1] <= row[2]]
    nearest = max(rows, key=lambda row: row[1] / row[2] if row[2] else row[1])
    figures: Figures = {"rows": len(rows), "wrong": wrong, "nearest_to_its_limit": row_text(nearest)}
    if wrong:
        raise WrongNumbers(figures)
    return figures


def row_text(row: gpu_checks.Row) -> str:
    """What was compared, how far apart it is, and what is allowed."""
    name, difference, limit = row
    return f"{name}: {difference:.1e} of {limit:.0e}"


def same_bits(setting: Setting, name: str) -> Figures:
    """Losses and weights of two short runs of a shallow model in several micro-batches a step.

    Raises:
        WrongNumbers: a bit differs.
    """
    short = replace(setting, warmup=1, steps=2, further_steps=0)
    workload = short.workload(name)
    workload = replace(workload, name=f"{name}-shallow", shape=replace(workload.shape, layers=2))
    folder = short.workload_folder(workload)
    tokens = workload.batch * (workload.prompt[0] + (1 + workload.negatives[0]) * workload.response[0])
    task = replace(short.task("penchant", workload, folder), token_budget=tokens // 2)
    runs = [bits_of_run(replace(task, work=f"{task.work}/{number}")) for number in range(2)]
    differing = [key for key in runs[0] if runs[0][key] != runs[1][key]]
    figures: Figures = {"values": len(runs[0]), "wrong": [f"{key} of two runs" for key in differing[:5]]}
    if differing:
        raise WrongNumbers(figures)
    return figures


def bits_of_run(task: Task) -> dict[str, float]:
    """The losses of a run, and a sum over the bits of every weight after it."""
    Path(task.work).mkdir()
    recorder, bits = Recorder(task), dict[str, float]()

    def add_up(loop: Loop) -> None:
        for name, parameter in loop.scorer.named_parameters():
            bits[name] = int(parameter.detach().view(torch.int32).sum(dtype=torch.int64))

    train_and_record(task, recorder, (), add_up)
    return {**{f"loss of step {i + 1}": step["loss"] for i, step in enumerate(recorder.steps)}, **bits}
