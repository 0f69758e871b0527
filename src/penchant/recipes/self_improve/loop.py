"""The learner's process: rounds of attempts, with the trainer beside it.

OUTPUT/config.json, OUTPUT/prompts.json    the settings, and the prompts in three parts
OUTPUT/buffer.sqlite                       every judgement once, and the groups that updates draw from
OUTPUT/served.json                         which learner answers now
OUTPUT/updates/                            the trainer's
OUTPUT/rounds/N.json                       the learner on the test's prompts after round N; 0: before the first
OUTPUT/report.html, OUTPUT/result.json
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from penchant.errors import TrainingError
from penchant.evaluation.files import read_record, write_atomically
from penchant.recipes.self_improve.attempts import attempt, satisfied
from penchant.recipes.self_improve.buffer import ReplayBuffer
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.gate import findable_gain
from penchant.recipes.self_improve.learner import Learner
from penchant.recipes.self_improve.measuring import measure
from penchant.recipes.self_improve.media import medium_of
from penchant.recipes.self_improve.parts import Parts, open_buffer, open_folder
from penchant.recipes.self_improve.served import DAMAGED, Served, read_served, serve
from penchant.recipes.self_improve.trainer import ERROR, idle, next_update

Tell = Callable[[str], None]
ASKED = ("train", "gate", "test")
RESTARTS = 3
"""How often in a row a trainer that was killed is started again."""


class Trainer:
    """The trainer's process; started again where it was killed.

    Raises:
        TrainingError: it gave up, or was killed again and again.
    """

    def __init__(self, output: Path) -> None:
        self._output, self._killed = output, 0
        (output / ERROR).unlink(missing_ok=True)
        self._process = self._start()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Start it again where it was killed."""
        code = self._process.poll()
        if code is None:
            return
        if (self._output / ERROR).exists():
            told = json.loads((self._output / ERROR).read_text(encoding="utf-8"))["error"]
            raise TrainingError(f"the trainer stopped: {told}", where=str(self._output), fix="then run it again")
        self._killed += 1
        if self._killed > RESTARTS:
            raise TrainingError(
                f"the trainer ended {self._killed} times, the last time with {code}",
                where=str(self._output / "trainer.log"),
                fix="see its log; then run it again",
            )
        self._process = self._start()

    def wait(self, config: SelfImproveConfig, buffer: ReplayBuffer) -> None:
        """Until no update is under way, nor enough for one."""
        while not idle(config, buffer):
            self.check()
            time.sleep(0.05)
        self._killed = 0

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "penchant.recipes.self_improve.trainer", str(self._output), str(os.getpid())]
        with (self._output / "trainer.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)


def improve(config: SelfImproveConfig, tell: Tell = lambda line: None) -> list[dict[str, Any]]:
    """Run all rounds; one that was interrupted is gone on with.

    Returns:
        Of each round, and before the first, what the learner was measured by.

    Raises:
        PenchantError: the data, configuration, learner, verifier or disk is at fault.
    """
    parts = open_folder(config)
    output = Path(config.output)
    medium_of(config).check([prompt for name in ASKED for prompt in parts[name].values()])
    tell(gate_note(config, len(parts["gate"])))
    if read_served(output) is None:
        serve(output, Served(0, config.model))
    buffer = open_buffer(config)
    _measure_round(config, parts, 0, {"updates": 0})
    with half_the_threads(), Trainer(output) as trainer:
        for number in range(1, config.rounds + 1):
            if why := stopped(config, read_rounds(config)):
                tell(why)
                break
            if (output / "rounds" / f"{number}.json").exists():
                continue
            tell(f"round {number} of {config.rounds}")
            _round(config, parts, number, buffer, trainer)
    counts = buffer.counts()
    buffer.close()
    tell(f"{counts['judgements']} judgements, {counts['groups']} groups")
    return read_rounds(config)


def gate_note(config: SelfImproveConfig, prompts: int) -> str:
    """What the gate can find, for people."""
    size = f"the gate: {prompts:,} prompts, {config.measured} answer{'s' * (config.measured > 1)} to each; "
    gain = findable_gain(prompts, config.measured, config.gate_error)
    if gain is None:
        return f"{size}no update can pass at gate_error {config.gate_error:g}: give more prompts, or raise held_out"
    better = f"an update better by about {100 * gain:.0f} points passes 8 times in 10"
    return f"{size}{better}, and one no better with probability {config.gate_error:g} at most"


@contextmanager
def half_the_threads() -> Iterator[None]:
    """Two processes with as many threads as there are cores would wait for each other most of the time."""
    own = torch.get_num_threads()
    torch.set_num_threads(max(1, own // 2))
    try:
        yield
    finally:
        torch.set_num_threads(own)


def stopped(config: SelfImproveConfig, rounds: Sequence[dict[str, Any]]) -> str | None:
    """Why no more rounds are run, where there should be more: the last with updates, as many as the patience, changed
    nothing."""
    if config.patience is None or len(rounds) > config.rounds:
        return None
    kept = 0
    for earlier, later in zip(rounds[-2::-1], rounds[:0:-1], strict=True):
        if earlier["served"] != later["served"]:
            break
        kept += later["updates"] > earlier["updates"]
    if kept < config.patience:
        return None
    last = f"stopped after round {rounds[-1]['round']}"
    return f"{last}: the gate kept what was served (rounds with updates since the last that passed: {kept})"


def read_rounds(config: SelfImproveConfig) -> list[dict[str, Any]]:
    """What is measured so far, from before the first round on."""
    folder = Path(config.output) / "rounds"
    files = (folder / f"{number}.json" for number in range(config.rounds + 1))
    return [read_record(file, ("round", "served", "updates"), DAMAGED) for file in files if file.exists()]


def _round(config: SelfImproveConfig, parts: Parts, number: int, buffer: ReplayBuffer, trainer: Trainer) -> None:
    output, started = Path(config.output), time.perf_counter()
    medium = medium_of(config)
    verifier = config.verifier.open_wrong(config.seed, medium.read)
    names = _names(config, parts, number)
    served = read_served(output)
    assert served is not None
    learner = Learner(served, medium.load)
    for start in range(0, len(names), config.batch):
        batch = {name: parts["train"][name] for name in names[start : start + config.batch]}
        learner.take(read_served(output) or served)
        attempt(
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
    answered = time.perf_counter()
    # A round is measured with all that it led to.
    trainer.wait(config, buffer)
    waited = time.perf_counter() - answered
    told = [judgement for name in names for judgement in buffer.judged(number, name)]
    facts = {
        "judgements": len(told),
        "first attempts satisfied": sum(each.attempt == 1 and satisfied(each) for each in told) / len(names),
        "unjudged": sum(not each.met for each in told),
        "swaps": learner.swaps,
        "groups": buffer.added(),
        "updates": next_update(output) - 1,
        "seconds": time.perf_counter() - started,
        "waited": waited,
    }
    _measure_round(config, parts, number, facts)


def _measure_round(config: SelfImproveConfig, parts: Parts, number: int, facts: dict[str, Any]) -> None:
    """By the verifier as it would be if it were never wrong, on the test's prompts and on those of the first round."""
    output = Path(config.output)
    file = output / "rounds" / f"{number}.json"
    if file.exists():
        return
    served = read_served(output)
    assert served is not None
    medium = medium_of(config)
    verifier = config.verifier.open(medium.read)
    earlier = [parts["train"][name] for name in _names(config, parts, 1)]
    found = {
        name: measure(medium, served.model, config.model, prompts, verifier, config.seed, config.measured).to_json()
        for name, prompts in (("test", list(parts["test"].values())), ("first round", earlier))
    }
    file.parent.mkdir(exist_ok=True)
    written = {"round": number, "served": served.update, **found, **facts}
    write_atomically(file, json.dumps(written, ensure_ascii=False) + "\n")


def _names(config: SelfImproveConfig, parts: Parts, number: int) -> list[str]:
    """The prompts of a round: all are asked once before one is asked again, in another order each time."""
    names, start = sorted(parts["train"]), (number - 1) * config.prompts_per_round
    chosen: list[str] = []
    while len(chosen) < min(config.prompts_per_round, len(names)):
        turn, place = divmod(start + len(chosen), len(names))
        chosen.append(random.Random(f"{config.seed} {turn}").sample(names, len(names))[place])
    return list(dict.fromkeys(chosen))
