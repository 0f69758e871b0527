"""The process that tunes the learner while it works: `python -m penchant.recipes.self_improve.trainer OUTPUT PARENT`.

PARENT is the learner's process: without it nobody would wait for an update.

OUTPUT/updates/N/      begun.json: what it starts from, and what it lowers of the priorities; train.jsonl;
                       run/; merged/; result.json once it is decided

An update that was killed is gone on with from what it left. It ends by the gate: the learner that is served stays,
unless the new one or the first is better by a paired test on the gate's prompts, with draws of this update's own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from penchant.data.writing import write_anew
from penchant.engine.folders import disk_errors
from penchant.errors import ConfigError, PenchantError
from penchant.evaluation.files import read_record, write_atomically
from penchant.recipes.self_improve.buffer import ReplayBuffer
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.gate import choose
from penchant.recipes.self_improve.learner import folder_of
from penchant.recipes.self_improve.measuring import measure
from penchant.recipes.self_improve.media import medium_of
from penchant.recipes.self_improve.parts import open_buffer, read_config, read_parts
from penchant.recipes.self_improve.served import DAMAGED, Served, read_served, serve

ERROR, LOCK = "trainer_error.json", "trainer.lock"
PAUSE = 0.1
"""Seconds between two looks at the buffer."""


def run(output: Path, parent: int) -> None:
    """Update whenever there is enough that is new, until the parent process is gone."""
    config = read_config(output)
    with _alone(output):
        buffer = open_buffer(config)
        while os.getppid() == parent:
            number = next_update(output)
            if idle(config, buffer):
                time.sleep(PAUSE)
            else:
                update(config, buffer, number)


def next_update(output: Path) -> int:
    """The first that is not decided; updates count from 1."""
    number = 1
    while (folder_of(output, number) / "result.json").exists():
        number += 1
    return number


def idle(config: SelfImproveConfig, buffer: ReplayBuffer) -> bool:
    """Whether no update is under way, nor enough new groups in the buffer for one."""
    output = Path(config.output)
    number = next_update(output)
    begun = (folder_of(output, number) / "begun.json").exists()
    return not begun and buffer.added() < number * config.update.new


def update(config: SelfImproveConfig, buffer: ReplayBuffer, number: int) -> None:
    """Tune what is served on a draw from the buffer, and let the gate decide."""
    output = Path(config.output)
    folder, started = folder_of(output, number), time.perf_counter()
    with disk_errors(folder, "the same command"):
        folder.mkdir(parents=True, exist_ok=True)
        before = _begin(config, buffer, number)
        new = Served(number, medium_of(config).tune(folder, before.model, config.seed + number))
    learners = {learner.update: learner for learner in (Served(0, config.model), before, new)}
    satisfied = {update: _gate(config, learner, number) for update, learner in learners.items()}
    best, p_values = choose(satisfied, before.update, config.measured, config.gate_error)
    if learners[best] != read_served(output):
        serve(output, learners[best])
    result = {
        "from": before.update,
        "served": best,
        "gate": {update: float(np.mean(shares)) for update, shares in satisfied.items()},
        "gate_p": p_values,
        "seconds": time.perf_counter() - started,
    }
    write_atomically(folder / "result.json", json.dumps(result) + "\n")


def _begin(config: SelfImproveConfig, buffer: ReplayBuffer, number: int) -> Served:
    """What the update starts from; its data is drawn, once."""
    output = Path(config.output)
    folder = folder_of(output, number)
    file = folder / "begun.json"
    if not file.exists():
        groups = buffer.draw(config.update.groups, seed=config.seed + number)
        write_anew(groups, folder / "train.jsonl")
        served, held = read_served(output), buffer.priorities()
        assert served is not None
        lowered = {group.id: held[group.id] * config.update.forgets for group in groups if group.id in held}
        write_atomically(file, json.dumps({"served": vars(served), "priorities": lowered}) + "\n")
    begun = read_record(file, ("served", "priorities"), DAMAGED)
    buffer.lower(begun["priorities"])
    return Served(**begun["served"])


def _gate(config: SelfImproveConfig, served: Served, number: int) -> tuple[float, ...]:
    """The share of each gate prompt's answers that satisfies, by the verifier the learner is judged by."""
    prompts = list(read_parts(Path(config.output))["gate"].values())
    medium = medium_of(config)
    verifier = config.verifier.open_wrong(config.seed, medium.read)
    found = measure(medium, served.model, served.model, prompts, verifier, number, config.measured)
    return found.satisfied


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Waits for another trainer of the folder, whose parent was killed, to end.

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


def main() -> int:
    output, parent = Path(sys.argv[1]), int(sys.argv[2])
    # The learner's process has the other half.
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    try:
        run(output, parent)
    except PenchantError as error:
        write_atomically(output / ERROR, json.dumps({"error": str(error)}) + "\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
