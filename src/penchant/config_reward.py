"""Where the scores of candidates come from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class JudgeConfig(_Section):
    """A language model behind an OpenAI-compatible endpoint."""

    url: str = Field(description="as in http://localhost:8000/v1")
    model: str


class RewardConfig(_Section):
    """A reward model, a function or a judge: exactly one of them."""

    model: str | None = Field(None, description="folder or hub id of a sequence-classification model")
    function: str | None = Field(None, description="package.module:name or file.py:name")
    judge: JudgeConfig | None = None

    @model_validator(mode="after")
    def _one(self) -> RewardConfig:
        given = [name for name in ("model", "function", "judge") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a reward is one of model, function and judge; {' and '.join(given) or 'none'} is given")
        return self
