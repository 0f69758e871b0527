"""The learner's process: rounds of attempts, while the trainer's process updates the learner.

OUTPUT/config.json, OUTPUT/prompts.json    the settings, and the prompts in three splits
OUTPUT/buffer.sqlite                       all judgements, and the groups that updates draw from
OUTPUT/served.json                         the served learner
OUTPUT/updates/                            folders of the updates, written by the trainer
OUTPUT/rounds/N.json                       metrics of the learner on the test prompts after round N; 0: before the first
OUTPUT/report.html, OUTPUT/result.json
"""

from __future__ import annotations

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
    PreferenceGroup,
    TrainingError,
    fill,
    folder_lock,
    read_record,
    resumable_disk_errors,
    run_log,
    write_atomically,
)
from penchant.recipes.self_improve.buffer import Judgement, ReplayBuffer
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.gate import detectable_gain, evaluate_learner, stop_reason
from penchant.recipes.self_improve.learner import (
    DAMAGED,
    AnswerFunction,
    Learner,
    ServedModel,
    answer_seed,
    read_served,
    write_served,
)
from penchant.recipes.self_improve.report import report_rounds
from penchant.recipes.self_improve.run_folder import PromptSplits, build_backend, open_buffer, open_run_folder
from penchant.recipes.self_improve.trainer import ERROR, is_idle, next_update
from penchant.recipes.self_improve.verifying import Verifier

logger = logging.getLogger(__name__)

MIN_PRIORITY = 0.05
"""Minimum priority of a group."""


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


def attempt_prompts(
    prompts: Mapping[str, str],
    number: int,
    answer: AnswerFunction,
    verifier: Verifier,
    buffer: ReplayBuffer,
    *,
    attempts: int,
    memory: str | None,
    seed: int,
) -> None:
    """Attempt one batch of a round's prompts; judgements of an interrupted batch are reused.

    Args:
        prompts: prompts by id.
        number: number of the round.
        answer: the learner's answer function.
        attempts: maximum attempts at a prompt.
        memory: template of a repeated attempt's prompt, with {prompt}, {answer} and {critique}; None: the prompt.

    Raises:
        ConfigError: the verifier gives no verdict on any prompt of the batch.
    """
    judgements = {name: buffer.judgements(number, name) for name in prompts}
    for nth in range(1, attempts + 1):
        unfinished = [
            name
            for name, earlier in judgements.items()
            if len(earlier) < nth and not (earlier and is_satisfied(earlier[-1]))
        ]
        if not unfinished:
            continue
        requests = [_request(prompts[name], judgements[name], memory) for name in unfinished]
        answers = answer(requests, [answer_seed(seed, number, name, nth) for name in unfinished])
        # The verifier judges by the original prompt; only the learner sees the memory.
        verdicts = verifier([prompts[name] for name in unfinished], answers)
        if all(verdict.failed for verdict in verdicts) and _is_down(judgements):
            raise ConfigError(
                f"the verifier gave no verdict on {len(verdicts)} answers",
                fix="check that it is up, then run the recipe again",
            )
        for name, text, verdict in zip(unfinished, answers, verdicts, strict=True):
            judgement = Judgement(number, name, nth, prompts[name], text, verdict.met, verdict.score, verdict.critique)
            buffer.record(judgement)
            judgements[name].append(judgement)
    for name, prompt_judgements in judgements.items():
        group = progress_group(name, prompt_judgements)
        if group is not None:
            worst = min(judgement.score for judgement in prompt_judgements if judgement.met)
            buffer.add(group, max(MIN_PRIORITY, prompt_judgements[-1].score - worst))


def is_satisfied(judgement: Judgement) -> bool:
    """Whether the answer meets every condition, and there is at least one."""
    return bool(judgement.met) and all(judgement.met)


def progress_group(name: str, judgements: Sequence[Judgement]) -> PreferenceGroup | None:
    """A group that prefers the satisfying last answer to the failed earlier ones; None without progress."""
    if len(judgements) < 2 or not is_satisfied(judgements[-1]):
        return None
    best = judgements[-1].answer
    earlier = dict.fromkeys(judgement.answer for judgement in judgements[:-1] if judgement.met)
    failed = [text for text in earlier if text != best and text.strip()]
    if not failed or not best.strip():
        return None
    return PreferenceGroup(judgements[-1].prompt, (best, *failed), preferred=0, id=f"{judgements[-1].round}-{name}")


def _request(prompt: str, judgements: Sequence[Judgement], memory: str | None) -> str:
    if memory is None or not judgements:
        return prompt
    return fill(memory, prompt=prompt, answer=judgements[-1].answer, critique=judgements[-1].critique)


def _is_down(judgements: Mapping[str, Sequence[Judgement]]) -> bool:
    """Whether none of several prompts has a verdict; a single prompt may just be impossible to judge."""
    return len(judgements) > 1 and not any(judgement.met for earlier in judgements.values() for judgement in earlier)


SPLITS = ("train", "gate", "test")
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

    def wait(self, config: SelfImproveConfig, buffer: ReplayBuffer) -> None:
        """Wait until no update is running and too few new groups are there for another."""
        while not is_idle(config, buffer):
            self.check()
            time.sleep(0.05)
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


def gate_note(config: SelfImproveConfig, prompts: int) -> str:
    """A sentence on the gain that the gate can detect."""
    size = f"the gate: {prompts:,} prompts, {config.measured} answer{'s' * (config.measured > 1)} to each; "
    gain = detectable_gain(prompts, config.measured, config.gate_error)
    if gain is None:
        return f"{size}no update can pass at gate_error {config.gate_error:g}: give more prompts, or raise held_out"
    better = f"an update better by about {100 * gain:.0f} points passes 8 times in 10"
    return f"{size}{better}, and one no better with probability {config.gate_error:g} at most"


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
    for offset in range(0, len(names), config.batch):
        batch = {name: splits["train"][name] for name in names[offset : offset + config.batch]}
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
    end_of_attempts = time.perf_counter()
    # A round's metrics include the updates that its groups started.
    trainer.wait(config, buffer)
    seconds_waited = time.perf_counter() - end_of_attempts
    judgements = [judgement for name in names for judgement in buffer.judgements(number, name)]
    details = {
        "judgements": len(judgements),
        "first attempts satisfied": sum(judgement.attempt == 1 and is_satisfied(judgement) for judgement in judgements)
        / len(names),
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
