"""The self-improving learner's configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field, model_validator

from penchant.config import LoraConfig, SamplingConfig, TrainingConfig
from penchant.config_reward import JudgeConfig, RewardConfig
from penchant.config_section import Section
from penchant.engine.denoising import LatentChoice
from penchant.engine.distribution import local_device
from penchant.errors import rename_options_in_errors
from penchant.evaluation.rewards import open_reward
from penchant.evaluation.user_functions import import_function
from penchant.recipes.fingerprints import weights_fingerprint
from penchant.recipes.reading import DEFAULT_READING, ReadingConfig
from penchant.recipes.self_improve.verifying import FunctionVerifier, NoisyVerifier, RewardVerifier, Verifier
from penchant.recipes.self_improve.verifying_endpoint import EndpointVerifier


class VerifierConfig(Section):
    """Who judges: exactly one of function, reward and endpoint."""

    function: str | None = Field(None, description="package.module:name or file.py:name; gives {condition: bool}")
    reward: RewardConfig | None = Field(None, description="one condition: the reward is at least the threshold")
    threshold: float | None = Field(None, description="of the reward; 0 where it is not said")
    endpoint: JudgeConfig | None = Field(None, description="a language model, asked for conditions and verdicts")
    wrong: float = Field(0.0, ge=0, le=1, description="share of verdicts on conditions turned wrong: an experiment")

    @model_validator(mode="after")
    def _one(self) -> VerifierConfig:
        given = [name for name in ("function", "reward", "endpoint") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of function, reward and endpoint, found {' and '.join(given) or 'none'}")
        if self.threshold is not None and self.reward is None:
            raise ValueError("threshold is a reward's: leave it out")
        if self.reward is not None and self.reward.judge is not None and self.threshold is None:
            raise ValueError("threshold: a judge's ratings are 1 to 10, say which is enough")
        return self

    def open(self, read: Callable[[str], object] = str) -> Verifier:
        """As it would judge if it were never wrong.

        Args:
            read: what a function is given of an answer.

        Raises:
            PenchantError: it cannot be loaded.
        """
        if self.function is not None:
            return FunctionVerifier.load(self.function, read)
        if self.reward is not None:
            with rename_options_in_errors({"reward.": "verifier.reward."}):
                return RewardVerifier(open_reward(self.reward, device=local_device()), self.threshold or 0.0)
        assert self.endpoint is not None
        return EndpointVerifier(self.endpoint)

    def fingerprint(self) -> str:
        """Of the code or weights that judge; an endpoint's model is known by its name alone."""
        function = self.function or (self.reward and self.reward.function)
        if function:
            return import_function(function, "verifier.function").digest
        if self.reward is not None and self.reward.model is not None:
            return weights_fingerprint(self.reward.model)
        return ""

    def open_wrong(self, seed: int, read: Callable[[str], object] = str) -> Verifier:
        """As the learner is judged."""
        verifier = self.open(read)
        return NoisyVerifier(verifier, self.wrong, seed) if self.wrong else verifier


class UpdateConfig(Section):
    """How the learner is tuned beside its work."""

    new: int = Field(16, ge=1, description="so many new groups in the buffer start an update")
    groups: int = Field(64, ge=2, description="drawn from the buffer for it, new and old, at most")
    objective: dict[str, Any] = Field({"name": "dpo", "beta": 0.1}, description="as in a run")
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig(learning_rate=1e-4, epochs=2)
    forgets: float = Field(0.5, gt=0, le=1, description="factor of a group's priority after it was used")


class PicturesConfig(Section):
    """How a learner of pictures paints, and is tuned."""

    steps: int = Field(25, ge=1, description="of a picture's way from noise")
    guidance: float = Field(4.0, ge=1, description="1 paints as trained; above 1 more as the prompt says")
    batch: int = Field(64, ge=1, description="pictures painted at a time")
    draws: int = Field(4, ge=1, description="number of (timestep, noise) samples for each group in a step of tuning")
    latents: LatentChoice = Field(
        "mode",
        description="of a picture, where the model has a VAE: its mode, or a sample as in the authors' code",
    )
    empty_prompts: float = Field(
        0.0, ge=0, lt=1, description="share of those samples with an empty prompt; 0.2 in the authors' code"
    )


class SelfImproveConfig(Section):
    """A learner that tries, is judged, tries again, and learns from where that helped."""

    model: str = Field(description="the learner: folder or hub id; of pictures, a folder in diffusers' format")
    prompts: str = Field(description="preference or prompt file; the prompts of it")
    output: str = Field(description="the recipe's folder")
    verifier: VerifierConfig
    rounds: int = Field(5, ge=1)
    patience: int | None = Field(None, ge=1, description="rounds in which the gate keeps what is served, then stop")
    prompts_per_round: int = Field(64, ge=1)
    attempts: int = Field(3, ge=2, description="at a prompt in a round, at most")
    batch: int = Field(32, ge=1, description="prompts attempted at a time; between batches a new learner is taken")
    memory: str | None = Field(
        None, description="the prompt of another attempt, of {prompt}, {answer} and {critique}; null: as the first"
    )
    sampling: SamplingConfig = Field(SamplingConfig(), description="of answers: max_new_tokens, temperature and top_p")
    pictures: PicturesConfig | None = Field(None, description="for a learner that paints; null: it writes")
    held_out: float = Field(0.3, gt=0, lt=1, description="share of prompts, half for the gate and half for the test")
    measured: int = Field(1, ge=1, description="answers to a prompt where a learner is measured, by the gate too")
    gate_error: float = Field(
        0.05, gt=0, lt=1, description="probability that an update that is no better replaces what is served"
    )
    capacity: int = Field(2000, ge=1, description="groups that the buffer holds")
    update: UpdateConfig = UpdateConfig()
    data: ReadingConfig = Field(DEFAULT_READING, description="how texts are read")
    token_budget: int = Field(8192, ge=1, description="tokens in a micro-batch of what is only read")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _remembers(self) -> SelfImproveConfig:
        if self.memory is not None and not all(name in self.memory for name in ("{prompt}", "{answer}", "{critique}")):
            raise ValueError("memory: expected a template with {prompt}, {answer} and {critique}")
        if (self.sampling.samples, self.sampling.every) != (SamplingConfig().samples, SamplingConfig().every):
            raise ValueError("sampling.samples and sampling.every are of runs on fresh samples; leave them out")
        if self.update.training.seed != TrainingConfig.model_fields["seed"].default:
            raise ValueError("update.training.seed: each update has its own, from seed; leave it out")
        return self

    @model_validator(mode="after")
    def _one_medium(self) -> SelfImproveConfig:
        if self.pictures is not None:
            if self.verifier.function is None:
                raise ValueError("verifier: expected a function: nothing else here looks at pictures")
            if self.memory is not None:
                raise ValueError("memory is of texts: a picture cannot be put into a prompt; leave it out")
            if self.token_budget != SelfImproveConfig.model_fields["token_budget"].default:
                raise ValueError("token_budget is of texts; leave it out")
            if self.data != DEFAULT_READING:
                raise ValueError("data is of texts; leave it out")
            if self.sampling != SamplingConfig():
                raise ValueError("sampling is of texts; what pictures have is in pictures: {steps, guidance}")
            given, unused = self.update.training, ("token_budget", "dtype", "gradient_checkpointing")
            of_texts = [name for name in unused if getattr(given, name) != TrainingConfig.model_fields[name].default]
            if of_texts:
                raise ValueError(f"update.training: pictures are not tuned by {', '.join(of_texts)}; leave it out")
        return self
