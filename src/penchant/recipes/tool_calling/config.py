"""The tool-calling recipe's configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from penchant.config import SamplingConfig, TrainingConfig
from penchant.config_objective import build_objective
from penchant.config_section import Section
from penchant.errors import ConfigError
from penchant.objectives import Needs
from penchant.recipes.comparing import Seeds
from penchant.recipes.reading import DEFAULT_READING, ReadingConfig
from penchant.recipes.reviewing import ReviewConfig
from penchant.recipes.small_llama import SizesConfig
from penchant.recipes.tuning import TuningConfig

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class NewModelConfig(SizesConfig):
    """A base from nothing."""

    texts: str | None = Field(None, description="text it is trained on: JSON lines of text, or plain text")
    chunk_words: int = Field(100, ge=8, description="longer passages are cut")
    training: TrainingConfig = TrainingConfig(learning_rate=2e-3, schedule="cosine", max_steps=500)


class PairsConfig(Section):
    """Where rejected answers come from."""

    corruptions: int = Field(2, ge=0, description="typed corruptions of each right answer, at most")
    samples: int = Field(2, ge=0, description="answers drawn from the weaker model for each question")
    temperature: float = Field(1.0, gt=0, description="of those draws")
    weaker: str = Field("sft", description="a path of one step, base, or a folder or hub id")
    variants: int = Field(2, ge=0, description="fresh variants of each training question, beside itself")

    @model_validator(mode="after")
    def _some(self) -> PairsConfig:
        if not self.corruptions + self.samples:
            raise ValueError("corruptions and samples are 0: there would be nothing to reject")
        return self


Learns = Literal["answers", "pairs", "reward"]


class StepConfig(TuningConfig):
    """One way to learn, from wherever the path has come to."""

    learns: Learns = Field(description="right answers, right above wrong ones, or by the score of its own answers")
    objective: dict[str, Any] = Field(description="as in a run")
    sampling: SamplingConfig = Field(SamplingConfig(), description="of its own answers, where it learns from a reward")

    @model_validator(mode="after")
    def _used(self) -> StepConfig:
        if self.learns != "reward" and self.sampling != SamplingConfig():
            raise ValueError(
                f"sampling is of steps that learn from a reward, this one learns {self.learns}: leave it out"
            )
        if self.training.seed != TrainingConfig.model_fields["seed"].default:
            raise ValueError("training.seed is not used: every path is gone with each of `seeds`; leave it out")
        return self

    @model_validator(mode="after")
    def _fits(self) -> StepConfig:
        try:
            objective = build_objective(self.objective)
        except ConfigError as error:
            raise ValueError(str(error).replace("\n  what to do: ", "; ")) from error
        reason = _unfit(objective.needs, self.learns, self.sampling.samples)
        if reason is not None:
            raise ValueError(f"objective {objective.name} {reason}")
        return self


def _unfit(needs: Needs, learns: Learns, samples: int) -> str | None:
    """Why an objective cannot learn what a step does."""
    if needs.head or needs.trains == "rewards":
        return "makes a model that scores and does not answer: name another, as sft, dpo or rloo"
    if needs.many_references:
        return "mixes several references, and a step has one, the model it starts from: name dpo"
    if learns == "answers" and (needs.candidates > 1 or needs.pairs or needs.labels or needs.scores):
        return "compares answers, and right answers stand alone: name sft, or let the step learn pairs"
    if learns == "pairs" and needs.scores:
        return "needs scores, and pairs have none: name dpo, or let the step learn by reward"
    if learns == "pairs" and needs.candidates > 2:
        return f"compares at least {needs.candidates} answers, and pairs may have two: name dpo"
    if learns == "reward" and needs.mismatched:
        return "needs answers to other prompts, which are not drawn: name rloo"
    if learns == "reward" and needs.candidates > samples:
        return f"compares at least {needs.candidates} answers, sampling.samples is {samples}: raise it"
    return None


class ToolCallingConfig(Section):
    """Small agents: supervised, by adapters, by preferences, by reward, and in sequence."""

    questions: str = Field(description="folder of the Berkeley leaderboard's files, or of others in their form")
    trajectories: str | None = Field(None, description="groups of prompt and completion: an agent's steps")
    output: str = Field(description="the recipe's folder")
    model: str | None = Field(None, description="folder or hub id; null: from nothing")
    new_model: NewModelConfig = NewModelConfig()
    style: Literal["messages", "signatures"] = Field("signatures", description="how functions are told")
    held_out: float = Field(0.2, gt=0, lt=0.5, description="share of the test, and of validation")
    data: ReadingConfig = Field(DEFAULT_READING, description="how every stage reads its data")
    variants: int = Field(10, ge=0, description="of each training question, under other names and values")
    mismatched: float = Field(0.1, ge=0, lt=1, description="share of variants with functions that do not serve")
    pairs: PairsConfig = PairsConfig()
    review: ReviewConfig = ReviewConfig()
    steps: dict[str, StepConfig] = Field(description="by name")
    paths: dict[str, list[str]] = Field(description="by name, the steps one after the other")
    seeds: Seeds = Field([0, 1, 2], description="every path is gone with each")
    constrained: bool = Field(
        False, description="answers in the evaluation can only be calls of the functions on offer, or none"
    )
    answer_tokens: int = Field(128, ge=1, description="of the longest answer")
    timed: int = Field(20, ge=1, description="questions, evenly spaced, answered one at a time by the clock")
    seed: int = Field(0, ge=0, description="of the parts, the variants and a model from nothing")

    @model_validator(mode="after")
    def _ways(self) -> ToolCallingConfig:
        for name in (*self.steps, *self.paths):
            if not name.replace("_", "").isalnum():
                raise ValueError(f"'{name}' cannot be a name: letters, digits and _")
        for name, steps in self.paths.items():
            unknown = [step for step in steps if step not in self.steps]
            if unknown or not steps:
                raise ValueError(f"paths.{name}: there is no step {unknown or 'in it'}; steps are {list(self.steps)}")
        if len({tuple(steps) for steps in self.paths.values()}) < len(self.paths) or not self.paths:
            raise ValueError("paths: expected one or more, each another sequence of steps")
        if "base" in self.paths or "base" in self.steps:
            raise ValueError("'base' is the name of where all paths start")
        unused = [step for step in self.steps if not any(step in steps for steps in self.paths.values())]
        if unused:
            raise ValueError(f"steps.{unused[0]} is in no path: put it in one, or leave it out")
        return self

    @model_validator(mode="after")
    def _weaker_is_there(self) -> ToolCallingConfig:
        weaker, steps = self.pairs.weaker, self.paths.get(self.pairs.weaker)
        if not any(step.learns == "pairs" for step in self.steps.values()) or weaker == "base":
            return self
        # It answers before there are pairs, and before any reward.
        early = steps is not None and len(steps) == 1 and self.steps[steps[0]].learns == "answers"
        elsewhere = steps is None and (Path(weaker).is_dir() or HUB_ID.fullmatch(weaker))
        if not early and not elsewhere:
            ready = [
                name for name, way in self.paths.items() if [self.steps[step].learns for step in way] == ["answers"]
            ]
            raise ValueError(
                f"pairs.weaker is '{weaker}'; expected a path of one step that learns answers "
                f"(here: {', '.join(ready) or 'none'}), base, a folder that exists, or a hub id with a /"
            )
        return self

    @model_validator(mode="after")
    def _starts(self) -> ToolCallingConfig:
        if self.model is None and self.new_model.texts is None:
            raise ValueError("new_model.texts: a base from nothing needs text, or name a model")
        if self.model is None and self.style == "messages":
            raise ValueError("style: a base from nothing has no chat template for messages; leave it at signatures")
        return self
