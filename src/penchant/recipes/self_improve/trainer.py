"""The process that trains the learner: `python -m penchant.recipes.self_improve.trainer OUTPUT PARENT`.

PARENT is the learner's process id; the trainer stops when that process is gone.

OUTPUT/updates/N/      begun.json: the model it starts from, the lowered priorities, and how many groups there
                       were; train.jsonl; run/; merged/; result.json once the gate has decided

An interrupted update resumes. At its end the gate decides: the served learner stays unless the new learner or the first
is better by a paired test on the gate's prompts, with sampling seeds of this update.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penchant.api import (
    ConfigError,
    PenchantError,
    Text,
    difference_of_shares,
    disk_errors,
    read_record,
    write_anew,
    write_atomically,
)
from penchant.recipes.self_improve.buffer import ReplayBuffer
from penchant.recipes.self_improve.config import LearnerConfig, SelfImproveConfig
from penchant.recipes.self_improve.gate import LearnerMetrics, choose_served, evaluate_learner
from penchant.recipes.self_improve.learner import DAMAGED, ServedModel, read_served, update_folder, write_served
from penchant.recipes.self_improve.run_folder import build_backend, open_buffer, read_config, read_splits

ERROR, LOCK, BEGUN, RESULT = "trainer_error.json", "trainer.lock", "begun.json", "result.json"
PAUSE = 0.1
"""Seconds between two checks of the buffer."""


def run(output: Path, parent: int) -> None:
    """Run an update whenever the buffer has enough new groups, until the parent process is gone."""
    config = read_config(output, SelfImproveConfig)
    checks = list(read_splits(output)["gate"].values())
    with trainer_lock(output):
        buffer = open_buffer(config)
        while os.getppid() == parent:
            number = next_update(output)
            if is_idle(config, buffer):
                time.sleep(PAUSE)
            else:
                run_update(config, buffer, number, checks)


def next_update(output: Path) -> int:
    """Number of the first update without a result; updates count from 1."""
    number = 1
    while (update_folder(output, number) / RESULT).exists():
        number += 1
    return number


def is_running(output: Path) -> bool:
    """Whether an update has begun and has no result."""
    return (update_folder(output, next_update(output)) / BEGUN).exists()


def is_up_to_date(config: LearnerConfig, groups: int) -> bool:
    """Whether finished updates have drawn from all but too few for an update of the groups that were added first.

    Args:
        groups: number of these groups. Where tuning is slower than trying, one update takes all that have come since
            the last, so that two updates at most lie between any group and this.
    """
    output = Path(config.output)
    last = update_folder(output, next_update(output) - 1) / BEGUN
    seen_groups = read_record(last, ("added",), DAMAGED)["added"] if last.exists() else 0
    return bool(groups - seen_groups < config.update.new)


def is_idle(config: LearnerConfig, buffer: ReplayBuffer) -> bool:
    """Whether no update is running and the buffer has too few groups for another that are newer than the last."""
    return not is_running(Path(config.output)) and is_up_to_date(config, buffer.count_added())


def run_update(config: LearnerConfig, buffer: ReplayBuffer, number: int, checks: Sequence[Text]) -> None:
    """Train the served learner on groups drawn from the buffer, and let the gate decide which learner to serve.

    Args:
        checks: the gate's prompts.
    """
    output = Path(config.output)
    folder, start_time = update_folder(output, number), time.perf_counter()
    with disk_errors(folder, "the same command"):
        folder.mkdir(parents=True, exist_ok=True)
        base = _start_update(config, buffer, number)
        candidate = ServedModel(number, build_backend(config).tune(folder, base.model, config.seed + number))
    learners = {learner.update: learner for learner in (ServedModel(0, config.model), base, candidate)}
    metrics = {
        update: _gate_metrics(config, learner, number, checks, measures_distance=learner == candidate)
        for update, learner in learners.items()
    }
    satisfied = {update: result.satisfied for update, result in metrics.items()}
    best, p_values = choose_served(satisfied, base.update, config.measured, config.gate_error)
    if learners[best] != read_served(output):
        write_served(output, learners[best])
    result = {
        "from": base.update,
        "served": best,
        "gate": {update: float(np.mean(shares)) for update, shares in satisfied.items()},
        "gate_p": p_values,
        "gained": {update: _gained(satisfied[update], satisfied[base.update]) for update in p_values},
        "checks": len(checks),
        "distance": metrics[number].collapse_metrics.distance,
        "seconds": time.perf_counter() - start_time,
    }
    write_atomically(folder / RESULT, json.dumps(result) + "\n")


def _start_update(config: LearnerConfig, buffer: ReplayBuffer, number: int) -> ServedModel:
    """The learner that the update starts from; the first call draws the update's data."""
    output = Path(config.output)
    folder = update_folder(output, number)
    file = folder / BEGUN
    if not file.exists():
        added = buffer.count_added()
        groups = buffer.draw(config.update.groups, seed=config.seed + number)
        write_anew(groups, folder / "train.jsonl")
        served, priorities = read_served(output), buffer.priorities()
        assert served is not None
        new_priorities = {
            group.id: priorities[group.id] * config.update.forgets for group in groups if group.id in priorities
        }
        start = {"served": vars(served), "priorities": new_priorities, "added": added}
        write_atomically(file, json.dumps(start) + "\n")
    record = read_record(file, ("served", "priorities"), DAMAGED)
    buffer.lower_priorities(record["priorities"])
    return ServedModel(**record["served"])


def _gate_metrics(
    config: LearnerConfig, learner: ServedModel, number: int, checks: Sequence[Text], *, measures_distance: bool
) -> LearnerMetrics:
    """Metrics of a learner on the gate's prompts, by the learner's verifier, with seeds of this update.

    Args:
        measures_distance: whether its distance from the first learner is computed, which takes time; else it is 0.
    """
    backend = build_backend(config)
    verifier = config.verifier.open_noisy(config.seed, backend.verifier_input)
    first_model = config.model if measures_distance else learner.model
    return evaluate_learner(backend, learner.model, first_model, checks, verifier, number, config.measured)


def _gained(candidate: Sequence[float], served: Sequence[float]) -> dict[str, Any]:
    """The gain in satisfying answers over the served learner, paired by prompt, with a 95 % interval."""
    return difference_of_shares(candidate, served, range(len(served))).to_json()


@contextmanager
def trainer_lock(output: Path) -> Iterator[None]:
    """Hold the folder's lock; waits for another trainer of the folder, whose parent was killed, to end.

    Raises:
        ConfigError: the system has no POSIX file locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise ConfigError(
            "updates need a lock on the folder, and this system has no POSIX file locks (the module fcntl)",
            where=str(output),
            fix="run this recipe on Linux or macOS; on Windows in WSL",
        ) from error
    with (output / LOCK).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def run_process(run: Callable[[Path, int], None]) -> int:
    """Run a process beside the learner's or the server's, which keeps the other half of the threads.

    Args:
        run: called with the folder and the parent's process id, the two arguments of the command line.

    Returns:
        The exit code: 2 after an error, which a file records.
    """
    output, parent = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    try:
        run(output, parent)
    except PenchantError as error:
        write_atomically(output / ERROR, json.dumps({"error": str(error)}) + "\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run_process(run))
