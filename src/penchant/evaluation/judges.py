"""Judges: which of two responses to a prompt is the better one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from penchant.config.reward import JudgeConfig, RewardConfig
from penchant.data.groups import Text, as_text
from penchant.data.rendering import PLAIN, Rendering
from penchant.errors import ConfigError
from penchant.evaluation.endpoint import Endpoint, Unanswered
from penchant.evaluation.held_out import Reading
from penchant.evaluation.rewards import Reward, open_reward
from penchant.storage.caches import AnswerCache, cache_folder
from penchant.storage.fingerprints import hash_text

if TYPE_CHECKING:
    import torch

Side = Literal["first", "second", "tie"]

PAIRWISE = """Two responses to the same message follow. Decide which of them helps the writer of the message more: look
at whether it is true, whether it answers what was asked, and whether it is clear. Length and order count for nothing.

[Message]
{prompt}

[Response A]
{first}

[Response B]
{second}

Explain in a sentence or two. Then end with one line that holds only your verdict: [[A]], [[B]], or [[C]] for a tie."""

POINTWISE = """Rate how well the response answers the message, from 1 (useless) to 10 (could not be better): whether it
is true, whether it answers what was asked, and whether it is clear.

[Message]
{prompt}

[Response]
{first}

End with one line that holds only your rating, as in [[7]]."""


@dataclass(frozen=True)
class Verdict:
    """One comparison.

    Attributes:
        failed: the judge gave no verdict, and the tie is ours.
    """

    side: Side
    failed: bool = False


class Judge(Protocol):
    """Compares pairs of responses."""

    @property
    def name(self) -> str: ...

    def compare(self, prompts: Sequence[Text], first: Sequence[Text], second: Sequence[Text]) -> list[Verdict]:
        """A verdict for each prompt."""
        ...


def open_judge(config: RewardConfig, *, device: torch.device, rendering: Rendering = PLAIN) -> Judge:
    """The judge a configuration names: an endpoint, or a reward whose higher number wins."""
    if config.judge is not None:
        return EndpointJudge(config.judge)
    return RewardJudge(open_reward(config, device=device, reading=Reading(rendering=rendering)))


@dataclass(frozen=True)
class RewardJudge:
    """The response with the higher reward wins; equal rewards are a tie."""

    reward: Reward

    @property
    def name(self) -> str:
        return self.reward.name

    def compare(self, prompts: Sequence[Text], first: Sequence[Text], second: Sequence[Text]) -> list[Verdict]:
        scores = self.reward(prompts, [list(pair) for pair in zip(first, second, strict=True)])
        return [Verdict("first" if a > b else "second" if b > a else "tie") for a, b in scores]


@dataclass(frozen=True)
class EndpointJudge:
    """A language model asked for a verdict; its answers are kept on disk, failures are not."""

    config: JudgeConfig

    @property
    def name(self) -> str:
        return f"{self._model} {hash_text(_pairwise(self.config), 8)}"

    @property
    def _model(self) -> str:
        return f"judge {self.config.url} {self.config.model}"

    def compare(self, prompts: Sequence[Text], first: Sequence[Text], second: Sequence[Text]) -> list[Verdict]:
        template = _pairwise(self.config)
        asked = [
            fill(template, prompt=as_text(p), first=as_text(a), second=as_text(b))
            for p, a, b in zip(prompts, first, second, strict=True)
        ]
        # A question holds its template: another template's questions are others.
        with closing(AnswerCache(self._model, cache_folder())) as kept:

            def judge(question: str) -> Verdict:
                known = kept.get(question)
                if known is not None:
                    return Verdict(known)
                try:
                    side: Side = Endpoint(self.config).ask(question, read_verdict)
                except Unanswered:
                    return Verdict("tie", failed=True)
                kept.keep([(question, side)])
                return Verdict(side)

            with ThreadPoolExecutor(self.config.parallel) as pool:
                return list(pool.map(judge, asked))


@dataclass(frozen=True)
class EndpointReward:
    """A language model asked for a rating of 1 to 10."""

    config: JudgeConfig

    @property
    def name(self) -> str:
        return f"rating {self.config.url} {self.config.model} {hash_text(_pointwise(self.config), 8)}"

    def __call__(self, prompts: Sequence[Text], responses: Sequence[Sequence[Text]]) -> list[list[float]]:
        template = _pointwise(self.config)
        asked = [
            fill(template, prompt=as_text(prompt), first=as_text(response))
            for prompt, given in zip(prompts, responses, strict=True)
            for response in given
        ]
        with ThreadPoolExecutor(self.config.parallel) as pool:
            ratings = iter(list(pool.map(self._rate, asked)))
        return [[next(ratings) for _ in given] for given in responses]

    def _rate(self, question: str) -> float:
        try:
            return Endpoint(self.config).ask(question, read_rating)
        except Unanswered as error:
            # A tie can be counted; a missing number cannot be trained on.
            raise ConfigError(
                f"the judge gave no rating after {self.config.retries + 1} attempts: {error}",
                where=self.config.url,
                fix="try again later, or raise judge.retries or judge.timeout_s",
            ) from error


def fill(template: str, **texts: str) -> str:
    """The template with each {name} replaced; braces in the texts themselves stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: texts.get(match[1], match[0]), template)


def read_verdict(answer: str) -> Side | None:
    """The last [[A]], [[B]] or [[C]] of an answer."""
    sides: dict[str, Side] = {"A": "first", "B": "second", "C": "tie"}
    found = re.findall(r"\[\[([ABC])\]\]", answer)
    return sides[found[-1]] if found else None


def read_rating(answer: str) -> float | None:
    """The last number in double brackets of an answer, from 1 to 10."""
    found = re.findall(r"\[\[(\d+(?:\.\d+)?)\]\]", answer)
    return float(found[-1]) if found and 1 <= float(found[-1]) <= 10 else None


def _pairwise(config: JudgeConfig) -> str:
    return _template(config, PAIRWISE, ("{prompt}", "{first}", "{second}"))


def _pointwise(config: JudgeConfig) -> str:
    return _template(config, POINTWISE, ("{prompt}", "{first}"))


def _template(config: JudgeConfig, ours: str, places: Sequence[str]) -> str:
    if config.prompt is None:
        return ours
    try:
        template = Path(config.prompt).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the judge's template cannot be read", where=config.prompt, fix="name a UTF-8 file"
        ) from error
    missing = " and no ".join(place for place in places if place not in template)
    if missing:
        fix = f"put {', '.join(places)} into it, where the texts are to stand"
        raise ConfigError(f"the judge's template has no {missing}", where=config.prompt, fix=fix)
    return template
