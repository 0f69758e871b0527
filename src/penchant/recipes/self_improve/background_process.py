"""The process that learns beside a server: `python -m penchant.recipes.self_improve.background_process OUTPUT PARENT`.

PARENT is the server's process id; the process stops when that process is gone. It judges the server's answers, tries
again where one failed, and updates the learner; the server reads which learner to serve in OUTPUT/served.json.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from penchant.api import (
    ConfigError,
    Text,
    as_json,
    context_length,
    load_config,
    load_tokenizer,
    tokenize_prompts,
    write_atomically,
)
from penchant.recipes.self_improve.attempts import attempt_prompts
from penchant.recipes.self_improve.buffer import Judgement, read_prompt
from penchant.recipes.self_improve.config import TrafficConfig
from penchant.recipes.self_improve.learner import Learner, read_served, update_folder
from penchant.recipes.self_improve.run_folder import build_backend, open_buffer, read_config
from penchant.recipes.self_improve.traffic import TrafficAnswer, TrafficStore, TrafficVerdict
from penchant.recipes.self_improve.trainer import (
    BEGUN,
    PAUSE,
    RESULT,
    is_idle,
    is_running,
    next_update,
    run_process,
    run_update,
    trainer_lock,
)
from penchant.recipes.self_improve.verifying import verifier_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAFFIC, CHECKS = "traffic.sqlite", "checks.json"
ROUND = 0
"""The round of the traffic's judgements in the replay buffer."""
NICENESS = 10
"""Added to the process's niceness, so that the server's threads go first."""


def open_traffic(config: TrafficConfig) -> TrafficStore:
    """The folder's traffic; every process opens its own connection."""
    return TrafficStore(
        Path(config.output) / TRAFFIC,
        held_out=config.held_out,
        checks=config.checks,
        pending=config.pending,
        seed=config.seed,
    )


class TrafficLearner:
    """Judges traffic, tries again where an answer failed, and updates the learner."""

    def __init__(self, config: TrafficConfig) -> None:
        self._config, self._output = config, Path(config.output)
        self._traffic, self._buffer = open_traffic(config), open_buffer(config)
        self._backend = build_backend(config)
        self._verifier = config.verifier.open_noisy(config.seed, self._backend.verifier_input)
        self._learner: Learner | None = None

    def step(self) -> bool:
        """Run an update that is due, or judge some answers; whether there was anything to do."""
        if is_running(self._output) or self._is_update_due():
            # The gate loads learners of its own.
            self._learner = None
            self._update(next_update(self._output))
            return True
        answers = self._traffic.begin(self._config.batch)
        if answers:
            self._judge(answers)
        return bool(answers)

    def _is_update_due(self) -> bool:
        return not is_idle(self._config, self._buffer) and len(self._traffic.checks()) >= self._config.checks

    def _judge(self, answers: Sequence[TrafficAnswer]) -> None:
        """Judge answers; another attempt at the prompt of a failed one makes a group.

        Raises:
            ConfigError: the verifier gives no verdict on any of several answers, which wait again.
        """
        prompts = [verifier_text(answer.prompt) for answer in answers]
        verdicts = self._verifier(prompts, [answer.answer for answer in answers])
        if len(answers) > 1 and all(verdict.failed for verdict in verdicts):
            self._traffic.put_back(answers)
            raise ConfigError(
                f"the verifier gave no verdict on {len(answers)} answers", fix="check that it is up: it is asked again"
            )
        failed: dict[str, Text] = {}
        for answer, verdict in zip(answers, verdicts, strict=True):
            name = str(answer.number)
            if verdict.failed or verdict.satisfied or answer.held_out or not self._fits(answer.prompt):
                continue
            failed[name] = answer.prompt
            # An interrupted attempt goes on from the verdict that it began with.
            if not self._buffer.judgements(ROUND, name):
                first_attempt = (answer.prompt, answer.answer, verdict.met, verdict.score, verdict.critique)
                self._buffer.record(Judgement(ROUND, name, 1, *first_attempt))
        if failed:
            attempt_prompts(
                failed,
                ROUND,
                self._current_learner().answer,
                self._verifier,
                self._buffer,
                attempts=self._config.attempts,
                memory=self._config.memory,
                seed=self._config.seed,
            )
        self._traffic.settle(
            [
                TrafficVerdict(answer, None if verdict.failed else verdict.satisfied)
                for answer, verdict in zip(answers, verdicts, strict=True)
            ]
        )
        self._buffer.forget_judgements(ROUND, list(failed))

    def _current_learner(self) -> Learner:
        served = read_served(self._output)
        assert served is not None  # The server writes it before it starts this process.
        if self._learner is None:
            self._learner = Learner(served, self._backend.load)
        self._learner.switch_to(served)
        return self._learner

    def _fits(self, prompt: Text) -> bool:
        """Whether another answer, with the token that ends it, has room behind the prompt."""
        [ids] = tokenize_prompts([prompt], self._tokenizer, self._config.data.rendering("last"))
        return self._context is None or len(ids) + self._config.sampling.max_new_tokens < self._context

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._config.model)

    @cached_property
    def _context(self) -> int | None:
        return context_length(load_config(self._config.model))

    def _update(self, number: int) -> None:
        """Run an update by the latest held-out prompts, and delete what only earlier updates needed."""
        file = update_folder(self._output, number) / CHECKS
        if not file.exists():
            checks = [as_json(prompt) for prompt in self._traffic.checks()]
            write_atomically(file, json.dumps(checks, ensure_ascii=False) + "\n")
        run_update(self._config, self._buffer, number, list(map(read_prompt, json.loads(file.read_text("utf-8")))))
        served = read_served(self._output)
        for earlier in range(1, number + 1):
            if served is not None and served.update != earlier:
                _delete_weights(update_folder(self._output, earlier))


def _delete_weights(folder: Path) -> None:
    """Delete an update's weights and texts; what the gate decided stays."""
    for path in folder.iterdir():
        if path.name in (BEGUN, RESULT):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def run(output: Path, parent: int) -> None:
    """Learn until the parent process is gone."""
    config = read_config(output, TrafficConfig)
    with trainer_lock(output):
        learner = TrafficLearner(config)
        while os.getppid() == parent:
            if not learner.step():
                time.sleep(PAUSE)


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    sys.exit(run_process(run))
