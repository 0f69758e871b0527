"""Penchant's speed and memory beside others', on the same work.

    python benchmarks/speed/run.py pairs --sides penchant trl_best padded
    python benchmarks/speed/run.py pairs long_prompts negatives vocabulary pairs_bf16 lora --out benchmarks/results
    python benchmarks/speed/run.py llama_8b_pairs     # a GPU's shapes in alternations; gpu_suite.py takes ten minutes
    python benchmarks/speed/run.py qwen_0.5b_k8 --device cpu --tiny --here penchant     # the same code, anywhere

Each side runs in a fresh process, in turn: A B C, A B C, ... TRL's sides run in an environment of their own, Penchant's
and the padded ones in one with what a user installs; both are made the first time (benchmarks/.envs/), or with --here
(where nothing can be installed, say) are that of this script. Losses of sides that do the same work must agree step by
step, before anything is said of their times; where they do not, nothing is reported and the exit status is 1. A peer
whose process fails is left out, and that is said; the exit status is 1 then too, unless the card's memory was too small
for it. What is recorded is said in measuring.py, what the bound counts in bound.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from bound import step_flops  # noqa: E402
from environments import penchant_python, trl_python  # noqa: E402
from measuring import Task  # noqa: E402
from report import Result, SideMeasurement, text, write  # noqa: E402
from workloads import WORKLOADS, Group, Workload, build, tokens_by_candidate, tokens_by_pair  # noqa: E402

TOLERANCE = {("cpu", "float32"): 1e-4, ("cpu", "bfloat16"): 6e-2, ("cuda", "bfloat16"): 0.1}
"""Largest difference of two sides' losses at any step.

In bfloat16 every side's losses, TRL's and the padded layout's included, are up to 0.026 from those of the same work in
float32 (`pairs_bf16`, rate 1e-4, twelve steps): two sides may be twice that apart. With the 24 layers of the GPU shapes
one side was 0.037 from its own float32 and two were 0.081 apart, while in float32 they agreed within 4e-6
(results/2026-11-26-h200-gpu.txt).
"""

RATE = 1e-5


@dataclass(frozen=True)
class Side:
    """A contestant.

    Attributes:
        script: run with a task and a file for what it finds.
        work: sides of the same work have the same losses.
        by_pair: each (positive, negative) is a pair of its own; else each candidate is read once.
        same_order: takes the data's order; else its losses are compared in the mean only.
        environment: whose, of those the benchmark makes.
        needs: a package that environment may lack.
    """

    script: str
    work: str = "dpo"
    by_pair: bool = True
    same_order: bool = True
    environment: Literal["penchant", "trl"] = "penchant"
    needs: str | None = None


def _trl(work: str = "dpo", same_order: bool = True, needs: str | None = None) -> Side:
    return Side("trl_side.py", work, same_order=same_order, environment="trl", needs=needs)


SIDES = {
    "penchant": Side("penchant_side.py", by_pair=False),
    "penchant_s_dpo": Side("penchant_side.py", "s_dpo", by_pair=False),
    "penchant_lora": Side("penchant_side.py", "dpo, lora", by_pair=False),
    "padded": Side("padded_side.py"),
    "padded_groups": Side("padded_side.py", "s_dpo", by_pair=False),
    "trl_default": _trl(),
    "trl_best": _trl(),
    "trl_compact": _trl(),
    "trl_group_by_length": _trl(same_order=False),
    "trl_lora": _trl("dpo, lora", needs="peft"),
    "trl_liger": _trl(needs="liger_kernel"),
    "trl_flash_pref": _trl(needs="flash_pref"),
    "trl_unsloth": _trl(needs="unsloth"),
}
BETA = {"dpo": 0.1, "dpo, lora": 0.1, "s_dpo": 1.0}
OURS = {side.work: name for name, side in SIDES.items() if name.startswith("penchant")}


class Disagreement(Exception):
    """Two sides that should do the same work do not, or did not see the same data."""


class Failure(Exception):
    """A side's process failed; the end of what it said."""

    @property
    def of_memory(self) -> bool:
        """Whether the card has too little of it."""
        return "OutOfMemoryError" in str(self)


def with_ours(names: Sequence[str]) -> list[str]:
    """The sides, with Penchant's own of each work put in where it is missing, before the first that needs it."""
    complete: list[str] = []
    for name in names:
        ours = OURS[SIDES[name].work]
        complete += [side for side in dict.fromkeys((ours, name)) if side not in complete]
    return complete


def check_tokens(side: str, report: dict[str, Any], steps: Sequence[Sequence[Group]]) -> None:
    """Every side saw the tokens that were drawn, no more and no fewer."""
    count = tokens_by_pair if SIDES[side].by_pair else tokens_by_candidate
    expected, actual = [count(step) for step in steps], [step["tokens"] for step in report["steps"]]
    if not SIDES[side].same_order:
        expected, actual = [sum(expected)], [sum(actual)]
    if actual != expected:
        raise Disagreement(f"{side} saw {actual} tokens in its steps, {expected} were drawn")


def check_losses(reports: dict[str, dict[str, Any]], tolerance: float) -> dict[str, float]:
    """The largest difference of each side's losses from those of Penchant's side of the same work.

    Raises:
        Disagreement: above the tolerance.
    """
    differences = {}
    for name, side in reports.items():
        ours = [step["loss"] for step in reports[OURS[SIDES[name].work]]["steps"]]
        theirs = [step["loss"] for step in side["steps"]]
        if not SIDES[name].same_order:
            ours, theirs = [sum(ours) / len(ours)], [sum(theirs) / len(theirs)]
        difference, step = max((abs(a - b), i) for i, (a, b) in enumerate(zip(ours, theirs, strict=True)))
        limit = tolerance if SIDES[name].same_order else 3e-2
        # `not <=`: a loss that is not a number is no agreement.
        if not difference <= limit:
            raise Disagreement(
                f"{name}'s loss differs from {OURS[SIDES[name].work]}'s by {difference:.2e} at step {step + 1}: "
                f"{theirs[step]:.6f} and {ours[step]:.6f}; the tolerance is {limit:.0e}"
            )
        differences[name] = difference
    return differences


def check_moved(reports: dict[str, dict[str, Any]], tolerance: float) -> None:
    """Losses moved by three tolerances at least, so that their agreement says something.

    Not asked of bfloat16, whose tolerance is wide; the table says by how much losses differ and move.
    """
    for name, side in reports.items():
        losses = [step["loss"] for step in side["steps"]]
        if max(losses) - min(losses) < 3 * tolerance:
            raise Disagreement(f"{name}'s losses hardly move ({min(losses):.5f} to {max(losses):.5f})")


def interpreter(side: Side, own_environments: Sequence[str]) -> str:
    """The Python a side runs in.

    Args:
        own_environments: environments that are this script's own.
    """
    if side.environment in own_environments:
        return sys.executable
    return str(trl_python() if side.environment == "trl" else penchant_python())


def missing_reason(name: str, own_environments: Sequence[str]) -> str | None:
    """Why a side cannot run here, and what to type; None where it can."""
    side = SIDES[name]
    if side.needs is None:
        return None
    python = interpreter(side, own_environments)
    test_import = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({side.needs!r}) is None)"
    if subprocess.run([python, "-c", test_import], check=False).returncode == 0:
        return None
    return f"{name} is left out: {side.needs} is not installed; {python} -m pip install {side.needs.replace('_', '-')}"


def run_side(script: str, python: str, task: Task) -> dict[str, Any]:
    """One side in a fresh process; what it found."""
    work = Path(task.work)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    task_file, out = work / "task.json", work / "found.json"
    task_file.write_text(json.dumps(asdict(task)))
    threads = {name: str(task.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    # Nothing is taken from caches of earlier runs, nothing is looked up.
    fresh = {"HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if task.device == "cpu" else {}
    environment = {**os.environ, **threads, **fresh, **hidden}
    command = [python, str(HERE / script), str(task_file), str(out)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise Failure(f"{task.side} failed:\n{process.stderr[-4000:]}")
    report: dict[str, Any] = json.loads(out.read_text())
    shutil.rmtree(work)
    return report


def compare(
    workload: Workload,
    names: Sequence[str],
    options: argparse.Namespace,
    folder: Path,
    steps: Sequence[Sequence[Group]],
    left_out: list[Failure],
) -> Result:
    """Run every side in turn, check that they do the same work, and put what they took side by side.

    Args:
        folder: has the workload's data and model in `data`.
        steps: groups of every step.
        left_out: takes the failures of peers.
    """
    names = with_ours(names)
    tolerance = TOLERANCE[workload.device, workload.dtype]

    def task(name: str, work: str) -> Task:
        return Task(
            side=name,
            folder=str(folder / "data"),
            work=str(folder / "sides" / name),
            steps=0 if options.tiny and not work else options.steps,
            warmup=options.warmup,
            batch=workload.batch,
            pairs=workload.pairs_per_step,
            parts=workload.parts,
            rate=options.rate,
            beta=BETA.get(work, 0.0),
            dtype=workload.dtype,
            device=workload.device,
            threads=options.threads,
            rank=workload.rank,
        )

    rounds: list[dict[str, dict[str, Any]]] = []
    matmul: list[dict[str, Any]] = []
    differences: dict[str, float] = {}
    for alternation in range(options.alternations):
        matmul.append(run_side("matmul_side.py", sys.executable, task("matmul", "")))
        reports = {}
        for name in list(names):
            side = SIDES[name]
            print(f"{workload.name}, {alternation + 1} of {options.alternations}: {name}", file=sys.stderr, flush=True)
            try:
                reports[name] = run_side(side.script, interpreter(side, options.here), task(name, side.work))
            except Failure as error:
                if name in OURS.values():
                    raise
                reason = "it ran out of memory" if error.of_memory else str(error)
                print(f"{name} is left out: {reason}", file=sys.stderr, flush=True)
                left_out.append(error)
                names.remove(name)
                continue
            check_tokens(name, reports[name], steps)
        new = check_losses(reports, tolerance)
        if workload.dtype == "float32" and not options.tiny:
            check_moved(reports, tolerance)
        differences = {name: max(value, differences.get(name, 0.0)) for name, value in new.items()}
        rounds.append(reports)
    counted_steps = steps[options.warmup :]
    sides = []
    for name in names:
        # LoRA's own step is compared with that of all weights, where both are there.
        ours = "penchant" if name.startswith("penchant") and "penchant" in names else OURS[SIDES[name].work]
        flops = [step_flops(workload.shape, step, workload.rank if "lora" in name else None) for step in steps]
        sides.append(
            SideMeasurement(
                side=name,
                compared_with=ours,
                rounds=[reports[name] for reports in rounds],
                ours=[reports[ours] for reports in rounds],
                warmup=options.warmup,
                flops=sum(flops[options.warmup :]),
                tokens=sum(map(tokens_by_candidate, counted_steps)),
                own_order=not SIDES[name].same_order,
                loss_difference=differences[name],
            )
        )
    best = max(matmul, key=lambda machine_report: machine_report["flops_per_second"])
    return Result(workload, options.steps, options.threads, best, tolerance, sides)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+", choices=[*WORKLOADS, "cpu"], metavar="WORKLOAD")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), help="default: those of the workload")
    parser.add_argument("--alternations", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="counted")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the workload's")
    parser.add_argument("--tiny", action="store_true", help="sizes for tests; times mean nothing")
    parser.add_argument(
        "--here",
        nargs="+",
        choices=["penchant", "trl"],
        default=[],
        help="whose sides run in this script's environment, whatever else is in it",
    )
    parser.add_argument("--work", type=Path, default=HERE.parent / ".work" / "speed", help="folder for data and sides")
    parser.add_argument("--out", type=Path, default=HERE.parent / ".work", help="folder for the results")
    options = parser.parse_args(arguments)
    of_cpu = [name for name, workload in WORKLOADS.items() if workload.device == "cpu"]
    options.workloads = [name for word in options.workloads for name in (of_cpu if word == "cpu" else [word])]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    results: list[Result] = []
    failed = False
    today = datetime.date.today().isoformat()
    # One that an earlier run left behind may be of other code.
    shutil.rmtree(options.work / "models", ignore_errors=True)
    for name in options.workloads:
        workload = WORKLOADS[name].tiny() if options.tiny else WORKLOADS[name]
        workload = replace(workload, device=options.device or workload.device)
        reasons = {side: missing_reason(side, options.here) for side in options.sides or workload.sides}
        print(*filter(None, reasons.values()), sep="\n", file=sys.stderr)
        if options.sides and any(reasons.values()):
            return 2
        sides = [side for side, reason in reasons.items() if reason is None]
        left_out: list[Failure] = []
        folder, total = options.work / name, options.warmup + options.steps
        shutil.rmtree(folder, ignore_errors=True)
        steps = build(workload, folder / "data", total, options.seed, models=options.work / "models")
        try:
            results.append(compare(workload, sides, options, folder, steps, left_out))
        except (Disagreement, Failure) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
            continue
        failed |= not all(failure.of_memory for failure in left_out)
        print(text(results[-1:]), flush=True)
        # After each workload: a run of hours that is cut short has told what it found.
        write(results, options.out, f"{today}-{workload.device}-speed", today)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
