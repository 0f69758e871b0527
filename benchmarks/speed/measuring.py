"""What every side records of its steps, in the same way. Imported in each side's own process; needs torch alone.

A step's time runs from the end of the one before to its own end, so that fetching and collating the batch, the
optimizer, and the trainer's own book-keeping count for everyone. Its seconds of CPU are the process's, over all
threads: on a machine that does other work too they say more than the clock.

Peak memory is that of the counted steps. On the CPU it is the process's resident memory: writing ``5`` to
/proc/self/clear_refs sets the kernel's high-water mark (VmHWM) to what is resident now, and it is read after the last
step; so loading, tokenization and the reference pass do not count, weights, optimizer and libraries do. On a GPU it is
torch's own peak of allocated memory.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

LIBRARIES = ("torch", "transformers", "penchant", "trl", "accelerate", "peft", "liger-kernel", "flash-pref")


@dataclass(frozen=True)
class Task:
    """What the driver asks of a side.

    Attributes:
        folder: of the workload; see workloads.py.
        work: an empty folder of the side's own.
        steps: counted, after `warmup` others.
        batch: groups in a step.
        pairs: (positive, negative) in a step.
        parts: equal ones that a peer cuts the step into.
        token_budget: of Penchant's micro-batches.
    """

    side: str
    folder: str
    work: str
    steps: int
    warmup: int
    batch: int
    pairs: int
    parts: int
    rate: float
    beta: float
    dtype: str
    device: str
    threads: int
    rank: int | None
    token_budget: int | Literal["auto"] = "auto"

    @classmethod
    def read(cls, file: str) -> Task:
        return cls(**json.loads(Path(file).read_text()))

    @property
    def total(self) -> int:
        return self.warmup + self.steps


class Recorder:
    """The record of one side's steps."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.steps: list[dict[str, float]] = []
        torch.set_num_threads(task.threads)

    def start(self) -> None:
        """Called before the first step."""
        self._mark()

    def end(self, loss: float, tokens: int) -> None:
        """Called at the end of each step, with the tokens that were not padding."""
        if self.task.device == "cuda":
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self.steps.append({"loss": float(loss), "tokens": int(tokens), "seconds": seconds, "cpu_seconds": cpu})
        if len(self.steps) == self.task.total:
            self.peak = self._peak_mb()
        self._mark()

    def write(self, out: str, **details: Any) -> None:
        """Write what was found; `more` is what the side has to say of itself."""
        if len(self.steps) != self.task.total:
            raise SystemExit(f"{self.task.side} took {len(self.steps)} steps of {self.task.total}")
        report: Mapping[str, Any] = {
            "side": self.task.side,
            "steps": self.steps,
            "peak_mb": self.peak,
            "threads": torch.get_num_threads(),
            "versions": library_versions(),
            **details,
        }
        Path(out).write_text(json.dumps(report))

    def _mark(self) -> None:
        if len(self.steps) == self.task.warmup:
            self._reset_peak()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _reset_peak(self) -> None:
        if self.task.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def _peak_mb(self) -> float:
        if self.task.device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024


def machine(device: str) -> dict[str, Any]:
    """The processor or card, and how many cores this process may use."""
    if device == "cuda":
        return {"device": torch.cuda.get_device_name(), "cores": len(os.sched_getaffinity(0))}
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.split(":", 1)[1].strip() for x in facts if x.startswith("model name")), platform.machine())
    return {"device": model, "cores": len(os.sched_getaffinity(0))}


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that are installed."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__
    return versions
