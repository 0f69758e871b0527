"""What all items of the suite share: device, sizes, folders, and the figures of the items before."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from measuring import Task
from workloads import WORKLOADS, Group, Workload, build

Figures = dict[str, Any]
"""What an item measured, as JSON."""

Item = Callable[[], Figures]

BETA, RATE = 0.1, 1e-5
"""DPO's beta and the learning rate of every run, ours and the peers'."""


@dataclass(frozen=True)
class Part:
    """Items that answer one question.

    Attributes:
        seconds: share of nine minutes that its items may take.
        items: name -> item, the most valuable first; made before any of them runs.
    """

    name: str
    seconds: float
    items: Callable[[Setting], Mapping[str, Item]]


@dataclass(frozen=True)
class Setting:
    """What all items share.

    Attributes:
        tiny: sizes for tests, whose times mean nothing.
        work: folder for data, models and runs.
        figures: part -> item -> figures of the items that have ended.
        warmup, steps: steps of a run that are not counted, and that are.
        further_steps: steps of the data after those.
    """

    device: Literal["cpu", "cuda"]
    tiny: bool
    work: Path
    figures: dict[str, dict[str, Figures]] = field(default_factory=dict)
    warmup: int = 3
    steps: int = 5
    further_steps: int = 2

    def workload(self, name: str) -> Workload:
        """A workload on this device."""
        workload = WORKLOADS[name].tiny() if self.tiny else WORKLOADS[name]
        return replace(workload, device=self.device)

    def workload_folder(self, workload: Workload) -> Path:
        """The folder of a workload's model and data, made by the first item that needs it; the model on the device."""
        folder = self.work / workload.name
        if not folder.exists():
            unfinished = self.work / f"{workload.name}-{os.getpid()}"
            build(workload, unfinished, self.warmup + self.steps + self.further_steps)
            unfinished.rename(folder)
        return folder

    def drawn_steps(self, folder: Path) -> list[list[Group]]:
        """The groups of the steps that all sides take, of a workload's folder."""
        steps: list[list[Group]] = json.loads((folder / "ids.json").read_text())
        return steps[: self.warmup + self.steps]

    def task(self, side: str, workload: Workload, folder: Path) -> Task:
        """The task of a side, with an empty work folder of its own."""
        work = self.work / "runs" / str(os.getpid())
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        return Task(
            side=side,
            folder=str(folder),
            work=str(work),
            steps=self.steps,
            warmup=self.warmup,
            batch=workload.batch,
            pairs=workload.pairs_per_step,
            parts=workload.parts,
            rate=RATE,
            beta=BETA,
            dtype=workload.dtype,
            device=workload.device,
            threads=1 if self.tiny else len(os.sched_getaffinity(0)),
            rank=workload.rank,
        )

    def matrix_rate(self) -> float | None:
        """Floating-point operations a second of bfloat16 products that the card was measured at, if it was."""
        rate = self.figures.get("card", {}).get("matrix products", {}).get("bfloat16_teraflops")
        return None if rate is None else 1e12 * float(rate)
