"""Judges of responses to a prompt: a reward, or a language model behind an endpoint, that compares or rates them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from penchant.config.shared_sections import JudgeConfig, RewardConfig
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


RUBRIC = """Rate the response to the message by comparing it with the reference, which is right:
5: right and complete; nothing of the reference is missing or contradicted
4: right, with a small omission or imprecision
3: right in part: a main point is missing or wrong
2: mostly wrong or missing, though on the subject
1: wrong, empty, off the subject or unreadable
Other words than the reference's are as good; length counts for nothing.

[Message]
{prompt}

[Reference]
{reference}

[Response]
{first}

Explain in a sentence. Then end with one line that holds only your rating, as in [[3]]."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison.

    Attributes:
        failed: whether the judge gave no verdict; the side is then a tie.
    """

    side: Side
    failed: bool = False


class Judge(Protocol):
    """Protocol of a judge, which compares pairs of responses."""

    @property
    def name(self) -> str: ...

    def compare(
        self, prompts: Sequence[Text], first_responses: Sequence[Text], second_responses: Sequence[Text]
    ) -> list[Verdict]:
        """Verdicts on the two responses to every prompt."""
        ...


def open_judge(config: RewardConfig, *, device: torch.device, rendering: Rendering = PLAIN) -> Judge:
    """The judge of a configuration: an endpoint, or a reward whose higher number wins."""
    if config.judge is not None:
        return EndpointJudge(config.judge)
    return RewardJudge(open_reward(config, device=device, reading=Reading(rendering=rendering)))


@dataclass(frozen=True)
class RewardJudge:
    """Judge by which the response with the higher reward wins; equal rewards are a tie."""

    reward: Reward

    @property
    def name(self) -> str:
        return self.reward.name

    def compare(
        self, prompts: Sequence[Text], first_responses: Sequence[Text], second_responses: Sequence[Text]
    ) -> list[Verdict]:
        scores = self.reward(prompts, [list(pair) for pair in zip(first_responses, second_responses, strict=True)])
        return [Verdict("first" if a > b else "second" if b > a else "tie") for a, b in scores]


@dataclass(frozen=True)
class EndpointJudge:
    """Judge that asks a language model for verdicts; verdicts are cached on disk, failures are not."""

    config: JudgeConfig

    @property
    def name(self) -> str:
        return f"{self._model} {hash_text(_pairwise(self.config), 8)}"

    @property
    def _model(self) -> str:
        return f"judge {self.config.source}"

    def compare(
        self, prompts: Sequence[Text], first_responses: Sequence[Text], second_responses: Sequence[Text]
    ) -> list[Verdict]:
        template = _pairwise(self.config)
        questions = [
            fill(template, prompt=as_text(p), first=as_text(a), second=as_text(b))
            for p, a, b in zip(prompts, first_responses, second_responses, strict=True)
        ]
        # A question contains its template, so that questions of another template have other cache keys.
        with closing(AnswerCache(self._model, cache_folder())) as answer_cache:

            def judge(question: str) -> Verdict:
                cached_side = answer_cache.get(question)
                if cached_side is not None:
                    return Verdict(cached_side)
                try:
                    side: Side = Endpoint(self.config).ask(question, read_verdict)
                except Unanswered:
                    return Verdict("tie", failed=True)
                answer_cache.keep([(question, side)])
                return Verdict(side)

            with ThreadPoolExecutor(self.config.parallel) as pool:
                return list(pool.map(judge, questions))


@dataclass(frozen=True)
class EndpointReward:
    """Reward that asks a language model for ratings from 1 to 10."""

    config: JudgeConfig

    @property
    def name(self) -> str:
        return f"rating {self.config.source} {hash_text(_pointwise(self.config), 8)}"

    def __call__(self, prompts: Sequence[Text], responses: Sequence[Sequence[Text]]) -> list[list[float]]:
        template = _pointwise(self.config)
        questions = [
            fill(template, prompt=as_text(prompt), first=as_text(response))
            for prompt, candidates in zip(prompts, responses, strict=True)
            for response in candidates
        ]
        with ThreadPoolExecutor(self.config.parallel) as pool:
            ratings = iter(list(pool.map(self._rate, questions)))
        return [[next(ratings) for _ in candidates] for candidates in responses]

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


@dataclass(frozen=True)
class RubricJudge:
    """Judge that asks a language model for ratings from 1 to 5 by a rubric, beside a reference response.

    Ratings are cached on disk, failures are not.
    """

    config: JudgeConfig

    def __call__(
        self, prompts: Sequence[Text], responses: Sequence[Text], references: Sequence[Text]
    ) -> list[float | None]:
        """The rating of the response to every prompt; None where the judge gave none."""
        template = _template(self.config, RUBRIC, ("{prompt}", "{first}", "{reference}"))
        questions = [
            fill(template, prompt=as_text(prompt), first=as_text(response), reference=as_text(reference))
            for prompt, response, reference in zip(prompts, responses, references, strict=True)
        ]
        with closing(AnswerCache(f"rubric {self.config.source}", cache_folder())) as answer_cache:

            def rate(question: str) -> float | None:
                cached_rating = answer_cache.get(question)
                if cached_rating is not None:
                    return float(cached_rating)
                try:
                    rating = Endpoint(self.config).ask(question, lambda answer: read_rating(answer, highest=5))
                except Unanswered:
                    return None
                answer_cache.keep([(question, rating)])
                return rating

            with ThreadPoolExecutor(self.config.parallel) as pool:
                return list(pool.map(rate, questions))


def fill(template: str, **texts: str) -> str:
    """The template with each {name} replaced; braces in the texts themselves stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: texts.get(match[1], match[0]), template)


def read_verdict(answer: str) -> Side | None:
    """The side named by the last [[A]], [[B]] or [[C]] of an answer; None without one."""
    sides: dict[str, Side] = {"A": "first", "B": "second", "C": "tie"}
    marks = re.findall(r"\[\[([ABC])\]\]", answer)
    return sides[marks[-1]] if marks else None


def read_rating(answer: str, highest: float = 10) -> float | None:
    """The last number in double brackets of an answer; None unless it is from 1 to `highest`."""
    marks = re.findall(r"\[\[(\d+(?:\.\d+)?)\]\]", answer)
    return float(marks[-1]) if marks and 1 <= float(marks[-1]) <= highest else None


def _pairwise(config: JudgeConfig) -> str:
    return _template(config, PAIRWISE, ("{prompt}", "{first}", "{second}"))


def _pointwise(config: JudgeConfig) -> str:
    return _template(config, POINTWISE, ("{prompt}", "{first}"))


def _template(config: JudgeConfig, ours: str, placeholders: Sequence[str]) -> str:
    if config.prompt is None:
        return ours
    try:
        template = Path(config.prompt).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the judge's template cannot be read", where=config.prompt, fix="name a UTF-8 file"
        ) from error
    missing_placeholders = " and no ".join(placeholder for placeholder in placeholders if placeholder not in template)
    if missing_placeholders:
        fix = f"put {', '.join(placeholders)} into it, where the texts are to stand"
        raise ConfigError(f"the judge's template has no {missing_placeholders}", where=config.prompt, fix=fix)
    return template
