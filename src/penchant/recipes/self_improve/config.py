"""Configurations of a learner that improves itself: by attempts at prompts, and by a server's traffic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from penchant.api import (
    JudgeConfig,
    LatentChoice,
    LoraConfig,
    RewardConfig,
    SamplingConfig,
    Section,
    TrainingConfig,
    import_function,
    local_device,
    open_reward,
    rename_options_in_errors,
    weights_fingerprint,
)
from penchant.recipes.reading import DEFAULT_READING, ReadingConfig
from penchant.recipes.self_improve.verifying import (
    EndpointVerifier,
    FunctionVerifier,
    NoisyVerifier,
    RewardVerifier,
    Verifier,
)


class VerifierConfig(Section):
    """The verifier: exactly one of function, reward and endpoint."""

    function: str | None = Field(
        None, description="package.module:name or file.py:name of a function that returns {condition: bool}"
    )
    reward: RewardConfig | None = Field(None, description="reward whose value must reach the threshold")
    threshold: float | None = Field(None, description="threshold of the reward; null: 0")
    endpoint: JudgeConfig | None = Field(
        None, description="language model that derives conditions and judges answers by them"
    )
    wrong: float = Field(0.0, ge=0, le=1, description="share of conditions whose verdict is flipped, for experiments")

    @model_validator(mode="after")
    def _check_verifier(self) -> VerifierConfig:
        names = [name for name in ("function", "reward", "endpoint") if getattr(self, name) is not None]
        if len(names) != 1:
            raise ValueError(f"expected one of function, reward and endpoint, found {' and '.join(names) or 'none'}")
        if self.threshold is not None and self.reward is None:
            raise ValueError("threshold is a reward's: leave it out")
        if self.reward is not None and self.reward.judge is not None and self.threshold is None:
            raise ValueError("threshold: a judge's ratings are 1 to 10, set the rating that is enough")
        return self

    def open(self, to_argument: Callable[[str], object] = str) -> Verifier:
        """The verifier without flipped verdicts.

        Args:
            to_argument: converts an answer to the argument of a verifier function.

        Raises:
            PenchantError: the verifier cannot be loaded.
        """
        if self.function is not None:
            return FunctionVerifier.load(self.function, to_argument)
        if self.reward is not None:
            with rename_options_in_errors({"reward.": "verifier.reward."}):
                return RewardVerifier(open_reward(self.reward, device=local_device()), self.threshold or 0.0)
        assert self.endpoint is not None
        return EndpointVerifier(self.endpoint)

    def fingerprint(self) -> str:
        """A fingerprint of the verifier's code or weights; empty for an endpoint, known only by its name."""
        function = self.function or (self.reward and self.reward.function)
        if function:
            return import_function(function, "verifier.function").digest
        if self.reward is not None and self.reward.model is not None:
            return weights_fingerprint(self.reward.model)
        return ""

    def open_noisy(self, seed: int, to_argument: Callable[[str], object] = str) -> Verifier:
        """The verifier that judges the learner, with a share of flipped verdicts."""
        verifier = self.open(to_argument)
        return NoisyVerifier(verifier, self.wrong, seed) if self.wrong else verifier


class UpdateConfig(Section):
    """Training of the learner, in parallel with its attempts."""

    new: int = Field(16, ge=1, description="number of new groups in the buffer that start an update")
    groups: int = Field(
        64, ge=2, description="maximum number of groups drawn from the buffer for an update, new and old"
    )
    objective: dict[str, Any] = Field({"name": "dpo", "beta": 0.1}, description="objective section of a run")
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig(learning_rate=1e-4, epochs=2)
    forgets: float = Field(0.5, gt=0, le=1, description="factor on a group's priority after an update used it")


class PicturesConfig(Section):
    """Generation of pictures, and training of a learner that makes them."""

    steps: int = Field(25, ge=1, description="number of denoising steps for a picture")
    guidance: float = Field(4.0, ge=1, description="classifier-free guidance scale; 1 is without guidance")
    batch: int = Field(64, ge=1, description="number of pictures generated at a time")
    draws: int = Field(4, ge=1, description="number of (timestep, noise) samples per group and step of training")
    latents: LatentChoice = Field(
        "mode",
        description="latents of a picture, if the model has a VAE: the mode, or a sample as in the authors' code",
    )
    empty_prompts: float = Field(
        0.0, ge=0, lt=1, description="share of samples with an empty prompt; 0.2 in the authors' code"
    )


class LearnerConfig(Section):
    """What learning from attempts and learning from a server's traffic have in common."""

    model: str = Field(description="the learner: folder or hub id; for pictures a folder in diffusers' format")
    output: str = Field(description="the recipe's folder")
    verifier: VerifierConfig
    attempts: int = Field(3, ge=2, description="maximum number of attempts at a prompt in a round")
    batch: int = Field(
        32, ge=1, description="number of prompts attempted at a time; a new learner takes over between batches"
    )
    memory: str | None = Field(
        None,
        description="template of a repeated attempt's prompt, with {prompt}, {answer} and {critique}; null: the prompt",
    )
    sampling: SamplingConfig = Field(
        SamplingConfig(), description="sampling of answers: max_new_tokens, temperature and top_p"
    )
    measured: int = Field(1, ge=1, description="number of answers per prompt in evaluations, also by the gate")
    gate_error: float = Field(
        0.05, gt=0, lt=1, description="probability that an update that is no better replaces the served learner"
    )
    capacity: int = Field(2000, ge=1, description="maximum number of groups in the buffer")
    update: UpdateConfig = UpdateConfig()
    data: ReadingConfig = Field(DEFAULT_READING, description="how text prompts and answers are read")
    token_budget: int = Field(8192, ge=1, description="maximum tokens in a micro-batch of evaluation")
    seed: int = Field(0, ge=0, description="seed of the splits, draws and training")

    @model_validator(mode="after")
    def _check_text_settings(self) -> Self:
        if self.memory is not None and not all(name in self.memory for name in ("{prompt}", "{answer}", "{critique}")):
            raise ValueError("memory: expected a template with {prompt}, {answer} and {critique}")
        if (self.sampling.samples, self.sampling.every) != (SamplingConfig().samples, SamplingConfig().every):
            raise ValueError("sampling.samples and sampling.every belong to runs on fresh samples; leave them out")
        if self.update.training.seed != TrainingConfig.model_fields["seed"].default:
            raise ValueError("update.training.seed: every update derives its own from seed; leave it out")
        return self


class TrafficConfig(LearnerConfig):
    """A served model that learns from its traffic: `penchant serve --learn`; an attempt at a prompt is its answer."""

    held_out: float = Field(
        0.2, gt=0, lt=1, description="share of the traffic's prompts that the gate checks learners by, never trained on"
    )
    checks: int = Field(
        100, ge=5, description="number of held-out prompts, the latest, that the gate uses; no update starts with fewer"
    )
    pending: int = Field(
        1000, ge=1, description="maximum number of answers that wait to be judged; beyond it the oldest are dropped"
    )

    @model_validator(mode="after")
    def _check_reading(self) -> Self:
        for name in ("as_chat", "chat_template", "chat_template_kwargs"):
            if getattr(self.data, name) != getattr(DEFAULT_READING, name):
                raise ValueError(f"data.{name}: chats are read by the served model's own template; leave it out")
        return self


class SelfImproveConfig(LearnerConfig):
    """A learner that attempts prompts, is judged by a verifier, tries again, and is trained on its progress."""

    prompts: str = Field(description="preference or prompt file whose prompts are used")
    rounds: int = Field(5, ge=1, description="number of rounds")
    patience: int | None = Field(
        None, ge=1, description="stop after so many rounds whose updates the gate rejected; null: never"
    )
    prompts_per_round: int = Field(64, ge=1, description="number of prompts in a round")
    while_tuning: Literal["try", "wait"] = Field(
        "try",
        description="what the learner does while updates of a round run whose prompts were tried: try further prompts, "
        "or wait; in the last round it waits",
    )
    pictures: PicturesConfig | None = Field(
        None, description="settings of a learner of pictures; null: the learner writes text"
    )
    held_out: float = Field(
        0.3, gt=0, lt=1, description="share of held-out prompts, half for the gate and half for the test"
    )

    @model_validator(mode="after")
    def _check_picture_settings(self) -> Self:
        if self.pictures is not None:
            if self.verifier.function is None:
                raise ValueError("verifier: expected a function, the only verifier of pictures")
            if self.memory is not None:
                raise ValueError("memory is for text: a picture cannot be put into a prompt; leave it out")
            if self.token_budget != SelfImproveConfig.model_fields["token_budget"].default:
                raise ValueError("token_budget is for text; leave it out")
            if self.data != DEFAULT_READING:
                raise ValueError("data is for text; leave it out")
            if self.sampling != SamplingConfig():
                raise ValueError("sampling is for text; set pictures: {steps, guidance} instead")
            if self.update.training.save_dtype != "auto":
                raise ValueError("update.training.save_dtype has no effect on pictures, saved in float32; leave it out")
        return self
