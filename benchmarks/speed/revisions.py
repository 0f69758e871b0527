"""This checkout's speed beside that of another, step by step in turn.

    git worktree add ../older 99acb4e
    python benchmarks/speed/revisions.py ../older pairs negatives

Both run `penchant train` on the same data, each in a process of its own, and take every step in turn, A B, B A, ...:
whatever else the machine does falls on both. Single runs on a shared machine differ by a quarter, ratios of
neighbouring steps do not. Losses must agree step by step. For each workload the median of the ratios of seconds (this
checkout over the other) and its 95 % interval, by a bootstrap over steps; the same of the process's seconds of CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np  # noqa: E402
from measuring import Task  # noqa: E402
from run import BETA, OURS, RATE, SIDES, TOLERANCE  # noqa: E402
from turn_side import TURN  # noqa: E402
from workloads import WORKLOADS, Workload, build  # noqa: E402


class Checkout:
    """A checkout's process, which takes one step a turn."""

    def __init__(self, folder: Path, task: dict[str, Any]) -> None:
        work = Path(task["work"])
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        (work / "task.json").write_text(json.dumps(task))
        self.report, self.log = work / "report.json", work / "log.txt"
        threads = {name: str(task["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [sys.executable, str(HERE / "turn_side.py"), str(folder), str(work / "task.json"), str(self.report)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **threads, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait(self) -> None:
        """Wait until the step is over.

        Raises:
            SystemExit: the process failed.
        """
        pipe: IO[str] | None = self.process.stdout
        assert pipe is not None
        if pipe.readline().strip() != TURN:
            raise SystemExit(f"{self.process.args} failed:\n{self.log.read_text()[-4000:]}")

    def step(self) -> None:
        """Let the process take a step, and wait for its end."""
        self.go()
        self.wait()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> list[dict[str, float]]:
        """Let the process end; its counted steps."""
        self.go()
        self.process.wait()
        steps: list[dict[str, float]] = json.loads(self.report.read_text())["steps"]
        return steps


def compare(workload: Workload, other: Path, options: argparse.Namespace) -> str:
    """The line of one workload."""
    folder = options.work / workload.name
    total = options.warmup + options.steps
    shutil.rmtree(folder, ignore_errors=True)
    build(workload, folder / "data", total, 0, models=options.work / "models")
    side = next(name for name in workload.sides if name in OURS.values())
    checkouts = []
    for name, checkout in (("this", HERE.parent.parent), ("other", other.resolve())):
        task = Task(
            side=side,
            folder=str(folder / "data"),
            work=str(folder / name),
            steps=options.steps,
            warmup=options.warmup,
            batch=workload.batch,
            pairs=workload.pairs_per_step,
            parts=workload.parts,
            rate=RATE,
            beta=BETA[SIDES[side].work],
            dtype=workload.dtype,
            device="cpu",
            threads=options.threads,
            rank=workload.rank,
        )
        fields = asdict(task)
        if "token_budget" not in (checkout / "benchmarks" / "speed" / "measuring.py").read_text():
            del fields["token_budget"]  # a checkout of before that setting
        checkouts.append(Checkout(checkout, fields))
        checkouts[-1].wait()
    for number in range(total):
        for checkout in checkouts[:: 1 if number % 2 else -1]:
            checkout.step()
    ours, theirs = (checkout.end() for checkout in checkouts)
    difference = max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True))
    if not difference <= TOLERANCE["cpu", workload.dtype]:
        raise SystemExit(f"{workload.name}: losses differ by {difference:.2e}")
    line = f"{workload.name:12}"
    for clock in ("seconds", "cpu_seconds"):
        pairs = zip(ours[options.warmup :], theirs[options.warmup :], strict=True)
        ratios = np.array([a[clock] / b[clock] for a, b in pairs])
        draws = np.random.default_rng(0).choice(ratios, (4000, len(ratios)))
        low, high = np.quantile(np.median(draws, 1), (0.025, 0.975))
        line += f"{clock:>14} {np.median(ratios):.3f} [{low:.3f}, {high:.3f}]"
    return f"{line}   {options.steps} steps, losses within {difference:.0e}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("workloads", nargs="+", choices=[*WORKLOADS])
    parser.add_argument("--steps", type=int, default=40, help="counted")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--tiny", action="store_true", help="sizes for tests; times mean nothing")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=HERE.parent / ".work" / "revisions", help="folder for data")
    options = parser.parse_args(arguments)
    if not (options.other / "benchmarks" / "speed" / "penchant_side.py").exists():
        parser.error(f"{options.other} is no checkout of Penchant: benchmarks/speed/penchant_side.py is missing")
    for name in options.workloads:
        workload = WORKLOADS[name].tiny() if options.tiny else WORKLOADS[name]
        print(compare(workload, options.other, options), flush=True)


if __name__ == "__main__":
    main()
