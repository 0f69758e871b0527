"""The learner's process: rounds of attempts, while the trainer's process updates the learner.

OUTPUT/config.json, OUTPUT/prompts.json    the settings, and the prompts in three splits
OUTPUT/buffer.sqlite                       all judgements, and the groups that updates draw from
OUTPUT/served.json                         the served learner
OUTPUT/updates/                            folders of the updates, written by the trainer
OUTPUT/rounds/N.json                       metrics of the learner on the test prompts after round N; 0: before the first
OUTPUT/report.html, OUTPUT/result.json
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from penchant.api import (
    ConfigError,
    TrainingError,
    folder_lock,
    read_record,
    resumable_disk_errors,
    run_log,
    write_atomically,
)
from penchant.recipes.self_improve.attempts import attempt_prompts, is_satisfied
from penchant.recipes.self_improve.buffer import ReplayBuffer
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.gate import evaluate_learner, gate_note, stop_reason
from penchant.recipes.self_improve.learner import (
    DAMAGED,
    Learner,
    ServedModel,
    read_served,
    write_served,
)
from penchant.recipes.self_improve.report import report_rounds
from penchant.recipes.self_improve.run_folder import PromptSplits, build_backend, open_buffer, open_run_folder
from penchant.recipes.self_improve.trainer import ERROR, is_up_to_date, next_update

logger = logging.getLogger(__name__)


def self_improve(config: SelfImproveConfig, *, only_stage: str | None = None) -> dict[str, Mapping[str, Any]]:
    """Run all rounds and write the report; an interrupted round resumes.

    Raises:
        PenchantError: see `improve`; also ConfigError if `only_stage` names a stage.
    """
    if only_stage is not None:
        raise ConfigError("self-improve has rounds and no stages", fix="leave --stage out")
    folder = Path(config.output)
    with resumable_disk_errors(folder), folder_lock(folder), run_log() as log:
        log.open(folder)
        return {"evaluation": report_rounds(config, improve(config))}


SPLITS = ("train", "gate", "test")
POLL_SECONDS = 0.05
"""Seconds between two looks whether an update has ended."""
RESTARTS = 3
"""Maximum restarts in a row of a trainer that ended unexpectedly."""


class TrainerProcess:
    """The trainer's process, which is restarted if it is killed.

    Raises:
        TrainingError: the trainer failed, or ended unexpectedly too often.
    """

    def __init__(self, output: Path) -> None:
        self._output, self._killed = output, 0
        (output / ERROR).unlink(missing_ok=True)
        self._process = self._start()

    def __enter__(self) -> TrainerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def check(self) -> None:
        """Restart the process if it was killed; raise its error if it failed."""
        code = self._process.poll()
        if code is None:
            return
        if (self._output / ERROR).exists():
            message = json.loads((self._output / ERROR).read_text(encoding="utf-8"))["error"]
            raise TrainingError(
                f"the trainer stopped: {message}",
                where=str(self._output),
                fix="correct this, then run the recipe again",
            )
        self._killed += 1
        if self._killed > RESTARTS:
            raise TrainingError(
                f"the trainer ended {self._killed} times, the last time with {code}",
                where=str(self._output / "trainer.log"),
                fix="see its log, then run the recipe again",
            )
        self._process = self._start()

    def confirm_progress(self) -> None:
        """Count ends of the process from here on: what it had to do is done."""
        self._killed = 0

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "penchant.recipes.self_improve.trainer", str(self._output), str(os.getpid())]
        with (self._output / "trainer.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)


def improve(config: SelfImproveConfig) -> list[dict[str, Any]]:
    """Run all rounds; an interrupted round resumes.

    Returns:
        The metrics before the first round and after every round.

    Raises:
        PenchantError: the data, configuration, learner, verifier or disk has an error.
    """
    splits = open_run_folder(config)
    output = Path(config.output)
    build_backend(config).check([prompt for name in SPLITS for prompt in splits[name].values()])
    logger.info(gate_note(config, len(splits["gate"])))
    if read_served(output) is None:
        write_served(output, ServedModel(0, config.model))
    buffer = open_buffer(config)
    _measure_round(config, splits, 0, {"updates": 0})
    with halved_threads(), TrainerProcess(output) as trainer:
        for number in range(1, config.rounds + 1):
            if reason := stop_reason(config, read_rounds(config)):
                logger.info(reason)
                break
            if (output / "rounds" / f"{number}.json").exists():
                continue
            logger.info(f"round {number} of {config.rounds}")
            _round(config, splits, number, buffer, trainer)
    counts = buffer.counts()
    buffer.close()
    logger.info(f"{counts['judgements']} judgements, {counts['groups']} groups")
    return read_rounds(config)


@contextmanager
def halved_threads() -> Iterator[None]:
    """Use half of PyTorch's threads: two processes with a thread per core would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read_rounds(config: SelfImproveConfig) -> list[dict[str, Any]]:
    """The metrics so far, from before the first round on."""
    folder = Path(config.output) / "rounds"
    files = (folder / f"{number}.json" for number in range(config.rounds + 1))
    return [read_record(file, ("round", "served", "updates"), DAMAGED) for file in files if file.exists()]


def _round(
    config: SelfImproveConfig, splits: PromptSplits, number: int, buffer: ReplayBuffer, trainer: TrainerProcess
) -> None:
    output, start_time = Path(config.output), time.perf_counter()
    backend = build_backend(config)
    verifier = config.verifier.open_noisy(config.seed, backend.verifier_input)
    names = _names(config, splits, number)
    served = read_served(output)
    assert served is not None
    learner = Learner(served, backend.load)

    def attempt(batch: Mapping[str, str]) -> None:
        learner.switch_to(read_served(output) or served)
        attempt_prompts(
            batch,
            number,
            learner.answer,
            verifier,
            buffer,
            attempts=config.attempts,
            memory=config.memory,
            seed=config.seed,
        )
        trainer.check()

    for offset in range(0, len(names), config.batch):
        attempt({name: splits["train"][name] for name in names[offset : offset + config.batch]})
    groups, seconds_waited = buffer.count_added(), 0.0
    # What is tried while the last round's updates run would be in no update.
    tries_on = config.while_tuning == "try" and number < config.rounds
    further = further_prompts(splits["train"], names, config.seed)
    # A round's metrics include the updates that the groups of its own prompts started.
    while not is_up_to_date(config, groups):
        if tries_on:
            attempt(dict(itertools.islice(further, config.batch)))
        else:
            start_of_wait = time.perf_counter()
            time.sleep(POLL_SECONDS)
            seconds_waited += time.perf_counter() - start_of_wait
            trainer.check()
    trainer.confirm_progress()
    judgements = buffer.judgements_of_round(number)
    first_attempts = [is_satisfied(judgement) for judgement in judgements if judgement.attempt == 1]
    details = {
        "judgements": len(judgements),
        "first attempts satisfied": sum(first_attempts) / len(first_attempts),
        "unjudged": sum(not judgement.met for judgement in judgements),
        "swaps": learner.swaps,
        "groups": buffer.count_added(),
        "updates": next_update(output) - 1,
        "seconds": time.perf_counter() - start_time,
        "waited": seconds_waited,
    }
    _measure_round(config, splits, number, details)


def _measure_round(config: SelfImproveConfig, splits: PromptSplits, number: int, details: dict[str, Any]) -> None:
    """Write a round's metrics on the test prompts and on the first round's, by the verifier without flips."""
    output = Path(config.output)
    file = output / "rounds" / f"{number}.json"
    if file.exists():
        return
    served = read_served(output)
    assert served is not None
    backend = build_backend(config)
    verifier = config.verifier.open(backend.verifier_input)
    first_round = [splits["train"][name] for name in _names(config, splits, 1)]
    metrics = {
        name: evaluate_learner(
            backend, served.model, config.model, prompts, verifier, config.seed, config.measured
        ).to_json()
        for name, prompts in (("test", list(splits["test"].values())), ("first round", first_round))
    }
    file.parent.mkdir(exist_ok=True)
    record = {"round": number, "served": served.update, **metrics, **details}
    write_atomically(file, json.dumps(record, ensure_ascii=False) + "\n")


def _names(config: SelfImproveConfig, splits: PromptSplits, number: int) -> list[str]:
    """The ids of a round's prompts: all prompts are used once, in random order, before one is used again."""
    names, start = sorted(splits["train"]), (number - 1) * config.prompts_per_round
    chosen: list[str] = []
    while len(chosen) < min(config.prompts_per_round, len(names)):
        turn, position = divmod(start + len(chosen), len(names))
        chosen.append(random.Random(f"{config.seed} {turn}").sample(names, len(names))[position])
    return list(dict.fromkeys(chosen))


def further_prompts(train: Mapping[str, str], round_names: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """Ids and texts of the prompts that a round tries after its own, without end: the others first.

    Args:
        train: prompts by id.
        round_names: ids of the round's own prompts.

    Yields:
        Ids that differ from the round's own, by the number of the pass over all prompts.
    """
    other_names = [name for name in sorted(train) if name not in round_names]
    order = random.Random(f"{seed} further {round_names[0]}").sample(other_names, len(other_names)) + list(round_names)
    for turn in itertools.count(1):
        for name in order:
            yield f"{name}+{turn}", train[name]
