"""The tool-calling recipe's configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from penchant.api import ConfigError, Needs, SamplingConfig, Section, TrainingConfig, build_objective
from penchant.recipes.reading import DEFAULT_READING, ReadingConfig
from penchant.recipes.results import ReviewConfig, Seeds
from penchant.recipes.small_llama import SizesConfig
from penchant.recipes.tuning import TuningConfig

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class NewModelConfig(SizesConfig):
    """A base model trained from scratch."""

    texts: str | None = Field(None, description="file of training text: JSON lines with a field text, or plain text")
    chunk_words: int = Field(100, ge=8, description="words of a passage, at most; longer ones are cut")
    training: TrainingConfig = TrainingConfig(learning_rate=2e-3, schedule="cosine", max_steps=500)


class PairsConfig(Section):
    """The sources of rejected answers."""

    corruptions: int = Field(2, ge=0, description="corruptions of each right answer, at most")
    samples: int = Field(2, ge=0, description="answers sampled from the weaker model for each question")
    temperature: float = Field(1.0, gt=0, description="sampling temperature of the weaker model")
    weaker: str = Field("sft", description="the weaker model: a path of one step, base, a folder or a hub id")
    variants: int = Field(2, ge=0, description="new variants of each training question, beside the question itself")

    @model_validator(mode="after")
    def _check_sources(self) -> PairsConfig:
        if not self.corruptions + self.samples:
            raise ValueError("corruptions and samples are 0: there would be no rejected answers")
        return self


Learns = Literal["answers", "pairs", "reward"]


class StepConfig(TuningConfig):
    """One training step of a path, which starts from the model of the step before it."""

    learns: Learns = Field(
        description="what the step learns from: right answers, pairs of right and wrong ones, or the reward of samples"
    )
    objective: dict[str, Any] = Field(description="the objective, as in a run's configuration")
    sampling: SamplingConfig = Field(
        SamplingConfig(), description="how answers are sampled in a step that learns from a reward"
    )

    @model_validator(mode="after")
    def _check_unused_settings(self) -> StepConfig:
        if self.learns != "reward" and self.sampling != SamplingConfig():
            raise ValueError(
                f"sampling is of steps that learn from a reward, this one learns {self.learns}: leave it out"
            )
        if self.training.seed != TrainingConfig.model_fields["seed"].default:
            raise ValueError("training.seed is not used: every path is trained with each of `seeds`; leave it out")
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> StepConfig:
        try:
            objective = build_objective(self.objective)
        except ConfigError as error:
            raise ValueError(str(error).replace("\n  what to do: ", "; ")) from error
        reason = _objective_mismatch(objective.needs, self.learns, self.sampling.samples)
        if reason is not None:
            raise ValueError(f"objective {objective.name} {reason}")
        return self


def _objective_mismatch(needs: Needs, learns: Learns, samples: int) -> str | None:
    """The reason why an objective cannot learn from a step's data; None if it can."""
    if needs.head or needs.trains == "rewards":
        return "trains a model that scores and does not answer: name another, as sft, dpo or rloo"
    if needs.many_references:
        return "mixes several references, and a step has one, the model it starts from: name dpo"
    if learns == "answers" and (needs.candidates > 1 or needs.pairs or needs.labels or needs.scores):
        return "compares answers, and every question has one right answer: name sft, or let the step learn pairs"
    if learns == "pairs" and needs.scores:
        return "needs scores, and pairs have none: name dpo, or let the step learn by reward"
    if learns == "pairs" and needs.candidates > 2:
        return f"compares at least {needs.candidates} answers, and pairs may have two: name dpo"
    if learns == "reward" and needs.mismatched:
        return "needs answers to other prompts, which are not sampled: name rloo"
    if learns == "reward" and needs.candidates > samples:
        return f"compares at least {needs.candidates} answers, sampling.samples is {samples}: raise it"
    return None


class ToolCallingConfig(Section):
    """Small agents, trained on right answers, pairs and rewards, with or without adapters, in sequences of steps."""

    questions: str = Field(description="folder of the Berkeley leaderboard's files, or of others in their form")
    trajectories: str | None = Field(None, description="file of groups of prompt and completion: an agent's steps")
    output: str = Field(description="the recipe's folder")
    model: str | None = Field(None, description="the base: folder or hub id; null: trained from scratch")
    new_model: NewModelConfig = NewModelConfig()
    style: Literal["messages", "native", "signatures"] = Field(
        "signatures", description="how the prompt describes functions, and how answers write calls"
    )
    held_out: float = Field(0.2, gt=0, lt=0.5, description="share of questions for the test, and for validation")
    data: ReadingConfig = Field(DEFAULT_READING, description="how every stage reads its data")
    variants: int = Field(10, ge=0, description="variants of each training question with other names and values")
    mismatched: float = Field(0.1, ge=0, lt=1, description="share of variants whose functions cannot answer them")
    pairs: PairsConfig = PairsConfig()
    review: ReviewConfig = ReviewConfig()
    steps: dict[str, StepConfig] = Field(description="the training steps by name")
    paths: dict[str, list[str]] = Field(description="the sequences of steps by name")
    seeds: Seeds = Field([0, 1, 2], description="seeds; every path is trained with each")
    constrained: bool = Field(
        False, description="answers in the evaluation can only be calls of the functions on offer, or none"
    )
    llama_cpp: bool = Field(
        False, description="also measure each path as GGUF in q8_0, with llama.cpp's own answers, time and memory"
    )
    answer_tokens: int = Field(128, ge=1, description="tokens of an answer, at most")
    timed: int = Field(20, ge=1, description="number of questions, evenly spaced, whose answers are timed one by one")
    seed: int = Field(0, ge=0, description="seed of the split, the variants and a model trained from scratch")

    @model_validator(mode="after")
    def _check_paths(self) -> ToolCallingConfig:
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
            raise ValueError("'base' is the name of the model that all paths start from")
        unused = [step for step in self.steps if not any(step in steps for steps in self.paths.values())]
        if unused:
            raise ValueError(f"steps.{unused[0]} is in no path: put it in one, or leave it out")
        return self

    @model_validator(mode="after")
    def _check_weaker_model(self) -> ToolCallingConfig:
        weaker, steps = self.pairs.weaker, self.paths.get(self.pairs.weaker)
        if not any(step.learns == "pairs" for step in self.steps.values()) or weaker == "base":
            return self
        # Its answers are part of the pairs, so it must be trained before the pairs and the rewards.
        is_early_path = steps is not None and len(steps) == 1 and self.steps[steps[0]].learns == "answers"
        is_model = steps is None and (Path(weaker).is_dir() or HUB_ID.fullmatch(weaker))
        if not is_early_path and not is_model:
            early_paths = [
                name for name, path in self.paths.items() if [self.steps[step].learns for step in path] == ["answers"]
            ]
            raise ValueError(
                f"pairs.weaker is '{weaker}'; expected a path of one step that learns answers "
                f"(here: {', '.join(early_paths) or 'none'}), base, a folder that exists, or a hub id with a /"
            )
        return self

    @model_validator(mode="after")
    def _check_base(self) -> ToolCallingConfig:
        if self.model is None and self.new_model.texts is None:
            raise ValueError("new_model.texts: a base trained from scratch needs text, or name a model")
        if self.model is None and self.style != "signatures":
            raise ValueError(
                f"style: a base trained from scratch has no chat template for {self.style}; name signatures"
            )
        return self
