"""Verifiers: whether an answer meets a prompt's conditions, how far, and what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from penchant.errors import ConfigError
from penchant.evaluation.rewards import Reward
from penchant.evaluation.user_functions import UserFunction, import_function, shown


@dataclass(frozen=True)
class Verdict:
    """One answer, judged.

    Attributes:
        met: a yes or no for each condition.
        score: in [0, 1], higher is better.
        critique: what to do better; empty where nothing is wrong.
        failed: the verifier gave no verdict; no condition is known then, and the score is 0.
    """

    met: tuple[bool, ...]
    score: float
    critique: str
    failed: bool = False

    @property
    def satisfied(self) -> bool:
        """Whether every condition is met, of which there is at least one."""
        return bool(self.met) and all(self.met)


class Verifier(Protocol):
    """Judges answers; the same prompt and answer get the same verdict."""

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """A verdict for each prompt and its answer."""
        ...


def share(met: Sequence[bool]) -> float:
    """Of all conditions, at least one, those that are met."""
    return sum(met) / len(met)


def naming(failing: Sequence[str]) -> str:
    """The critique that names these conditions; empty where there are none."""
    return f"Not met: {'; '.join(each.rstrip('.') for each in failing)}." if failing else ""


@dataclass(frozen=True)
class FunctionVerifier:
    """A user's function ``f(prompt, answer) -> {condition: bool}``, or one that returns a `Verdict` of its own.

    Of conditions the score is the share that is met, and the critique names the others.

    Args:
        read: what the function is given of an answer.
    """

    function: UserFunction
    read: Callable[[str], object] = str

    @classmethod
    def load(cls, where: str, read: Callable[[str], object] = str) -> FunctionVerifier:
        """Import ``package.module:name`` or ``file.py:name``.

        Raises:
            ConfigError: it is not there, cannot be imported, or is no function.
        """
        return cls(import_function(where, "verifier.function"), read)

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """A verdict for each prompt and its answer.

        Raises:
            ConfigError: the function raised something, or returned anything but conditions.
        """
        return [self._one(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def _one(self, prompt: str, answer: str) -> Verdict:
        given = self.read(answer)
        try:
            found = self.function.call(prompt, given)
        except Exception as error:
            raise self._wrong(f"raised {type(error).__name__}: {' '.join(str(error).split())}", prompt) from error
        if isinstance(found, Verdict):
            return self._plain(found, prompt)
        if not isinstance(found, Mapping) or not found:
            raise self._wrong(f"returned {shown(found)}, expected a dictionary of at least one condition", prompt)
        for condition, met in found.items():
            # Comparisons of numpy's numbers are no bool of Python's.
            if not isinstance(condition, str) or not isinstance(met, bool | np.bool_):
                what = f"returned {shown(condition)}: {shown(met)}, expected a condition's name and True or False"
                raise self._wrong(what, prompt)
        met = tuple(map(bool, found.values()))
        return Verdict(met, share(met), naming([condition for condition, fine in found.items() if not fine]))

    def _plain(self, found: Verdict, prompt: str) -> Verdict:
        """A verdict of the user's in Python's own types, as it is stored."""
        if not all(isinstance(met, bool | np.bool_) for met in found.met) or bool(found.met) == found.failed:
            what = f"returned met={shown(found.met)}, failed={found.failed}, expected True or False for each condition"
            raise self._wrong(what, prompt)
        score = found.score
        if not isinstance(score, int | float | np.number) or not math.isfinite(score):
            raise self._wrong(f"returned a score of {shown(score)}, expected a finite number", prompt)
        return Verdict(tuple(map(bool, found.met)), float(score), str(found.critique), bool(found.failed))

    def _wrong(self, what: str, prompt: str) -> ConfigError:
        return ConfigError(
            f"the verifier's function {what}",
            where=f"{self.function.where}, prompt {shown(prompt)}",
            fix='return a True or False for each condition, as in {"short": len(answer) < 100}',
        )


@dataclass(frozen=True)
class RewardVerifier:
    """One condition: the reward is at least a threshold. The score is the logistic of what lies between them."""

    reward: Reward
    threshold: float

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """A verdict for each prompt and its answer; errors as the reward's."""
        rewards = self.reward(prompts, [[answer] for answer in answers])
        return [self._one(reward) for (reward,) in rewards]

    def _one(self, reward: float) -> Verdict:
        met = reward >= self.threshold
        # The logistic, without an exponential that overflows.
        score = 0.5 + 0.5 * math.tanh((reward - self.threshold) / 2)
        wanted = f"the reward is {reward:.3g}, expected at least {self.threshold:.3g}"
        return Verdict((met,), score, "" if met else naming([wanted]))


@dataclass(frozen=True)
class NoisyVerifier:
    """Another verifier with conditions turned wrong at random, each by itself: what a wrong verifier does to a learner.

    A verdict of which none is turned stays as it is. In others the score is the share of conditions that seem met,
    and the critique has the places of those that do not: their names would give away which of them are turned.

    Args:
        rate: probability that a condition is turned, in [0, 1].
        seed: with the prompt and the answer, decides which.
    """

    verifier: Verifier
    rate: float
    seed: int

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        verdicts = self.verifier(prompts, answers)
        return [self._one(*each) for each in zip(prompts, answers, verdicts, strict=True)]

    def _one(self, prompt: str, answer: str, verdict: Verdict) -> Verdict:
        met = tuple(fine != self._turned(prompt, answer, place) for place, fine in enumerate(verdict.met))
        if met == verdict.met:
            return verdict
        failing = [f"condition {place} of {len(met)}" for place, fine in enumerate(met, 1) if not fine]
        return Verdict(met, share(met), naming(failing))

    def _turned(self, prompt: str, answer: str, place: int) -> bool:
        text = json.dumps([self.seed, place, prompt, answer]).encode()
        drawn = int.from_bytes(hashlib.blake2b(text, digest_size=6).digest())
        return drawn < self.rate * 2**48
