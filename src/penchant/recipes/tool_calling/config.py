"""The tool-calling recipe's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from penchant.config import SamplingConfig, Section, TrainingConfig
from penchant.recipes.comparing import Seeds
from penchant.recipes.reviewing import ReviewConfig
from penchant.recipes.small_llama import SizesConfig
from penchant.recipes.tuning import TunedConfig


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


class StepConfig(TunedConfig):
    """One way to learn, from wherever the path has come to."""

    learns: Literal["answers", "pairs", "reward"] = Field(
        description="right answers, right above wrong ones, or by the score of its own answers"
    )
    objective: dict[str, Any] = Field(description="as in a run")
    sampling: SamplingConfig = Field(SamplingConfig(), description="of its own answers, where it learns from a reward")


class ToolCallingConfig(Section):
    """Small agents: supervised, by adapters, by preferences, by reward, and in sequence."""

    questions: str = Field(description="folder of the Berkeley leaderboard's files, or of others in their form")
    trajectories: str | None = Field(None, description="groups of prompt and completion: an agent's steps")
    output: str = Field(description="the recipe's folder")
    model: str | None = Field(None, description="folder or hub id; null: from nothing")
    new_model: NewModelConfig = NewModelConfig()
    style: Literal["messages", "signatures"] = Field("signatures", description="how functions are told")
    held_out: float = Field(0.2, gt=0, lt=0.5, description="share of the test, and of validation")
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
    timed: int = Field(20, ge=1, description="questions answered one at a time, by the clock")
    seed: int = Field(0, ge=0, description="of the parts, the variants and a model from nothing")

    @model_validator(mode="after")
    def _consistent(self) -> ToolCallingConfig:
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
        single = {name for name, steps in self.paths.items() if len(steps) == 1}
        taught = any(self.steps[step].learns == "pairs" for steps in self.paths.values() for step in steps)
        if taught and self.pairs.weaker in self.paths and self.pairs.weaker not in single:
            raise ValueError("pairs.weaker: a path of one step, as pairs are made before the others")
        if self.model is None and self.new_model.texts is None:
            raise ValueError("new_model.texts: a base from nothing needs text, or name a model")
        return self
