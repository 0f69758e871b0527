"""The self-improving learner's configuration."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from penchant.config import LoraConfig, SamplingConfig, Section, TrainingConfig
from penchant.config_reward import JudgeConfig, RewardConfig
from penchant.engine.distribution import local_device
from penchant.evaluation.rewards import open_reward
from penchant.recipes.self_improve.verifying import FunctionVerifier, NoisyVerifier, RewardVerifier, Verifier
from penchant.recipes.self_improve.verifying_endpoint import EndpointVerifier


class VerifierConfig(Section):
    """Who judges: exactly one of function, reward and endpoint."""

    function: str | None = Field(None, description="package.module:name or file.py:name; gives {condition: bool}")
    reward: RewardConfig | None = Field(None, description="one condition: the reward is at least the threshold")
    threshold: float = Field(0.0, description="of the reward")
    endpoint: JudgeConfig | None = Field(None, description="a language model, asked for conditions and verdicts")
    wrong: float = Field(0.0, ge=0, le=1, description="share of verdicts on conditions turned wrong: an experiment")

    @model_validator(mode="after")
    def _one(self) -> VerifierConfig:
        given = [name for name in ("function", "reward", "endpoint") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of function, reward and endpoint, found {' and '.join(given) or 'none'}")
        return self

    def open(self) -> Verifier:
        """As it would judge if it were never wrong.

        Raises:
            PenchantError: it cannot be loaded.
        """
        if self.function is not None:
            return FunctionVerifier.load(self.function)
        if self.reward is not None:
            return RewardVerifier(open_reward(self.reward, device=local_device()), self.threshold)
        assert self.endpoint is not None
        return EndpointVerifier(self.endpoint)

    def open_wrong(self, seed: int) -> Verifier:
        """As the learner is judged."""
        return NoisyVerifier(self.open(), self.wrong, seed) if self.wrong else self.open()


class UpdateConfig(Section):
    """How the learner is tuned beside its work."""

    new: int = Field(16, ge=1, description="so many new groups in the buffer start an update")
    groups: int = Field(64, ge=2, description="drawn from the buffer for it, new and old, at most")
    objective: dict[str, Any] = Field({"name": "dpo", "beta": 0.1}, description="as in a run")
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig(learning_rate=1e-4, epochs=2)
    forgets: float = Field(0.5, gt=0, le=1, description="factor of a group's priority after it was used")


class SelfImproveConfig(Section):
    """A learner that tries, is judged, tries again, and learns from where that helped."""

    model: str = Field(description="folder or hub id: the learner")
    prompts: str = Field(description="preference or prompt file; the prompts of it")
    output: str = Field(description="the recipe's folder")
    verifier: VerifierConfig
    rounds: int = Field(5, ge=1)
    prompts_per_round: int = Field(64, ge=1)
    attempts: int = Field(3, ge=2, description="at a prompt in a round, at most")
    batch: int = Field(32, ge=1, description="prompts attempted at a time; between batches a new learner is taken")
    memory: str | None = Field(
        None, description="the prompt of another attempt, of {prompt}, {answer} and {critique}; null: as the first"
    )
    sampling: SamplingConfig = Field(SamplingConfig(), description="of answers; samples and every are not used")
    held_out: float = Field(0.3, gt=0, lt=1, description="share of prompts, half for the gate and half for the test")
    capacity: int = Field(2000, ge=1, description="groups that the buffer holds")
    update: UpdateConfig = UpdateConfig()
    token_budget: int = Field(8192, ge=1, description="tokens in a micro-batch of what is only read")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _remembers(self) -> SelfImproveConfig:
        if self.memory is not None and not all(name in self.memory for name in ("{prompt}", "{answer}", "{critique}")):
            raise ValueError("memory: expected a template with {prompt}, {answer} and {critique}")
        return self
