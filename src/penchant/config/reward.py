"""Where the scores of candidates come from: a reward model, a function of the user's, or a judge."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from penchant.config.section import SECRET, Section


class JudgeConfig(Section):
    """A language model behind an OpenAI-compatible endpoint."""

    url: str = Field(description="up to /chat/completions, as in http://localhost:8000/v1")
    model: str = Field(description="the name the endpoint knows it by")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable that holds the key; it may be unset")
    prompt: str | None = Field(None, description="file with a template of {prompt}, {first} and {second}")
    timeout_s: float = Field(60, gt=0, description="seconds to wait for one answer")
    retries: int = Field(4, ge=0, description="after time-outs, 429, 5xx and answers without a verdict")
    parallel: int = Field(4, ge=1, description="requests at a time")

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        if any(mark in value for mark in "@?#"):
            raise PydanticCustomError(
                SECRET,
                "expected no user, password or query in the address; it stands in logs and reports. A key belongs into "
                "the environment variable that api_key_env names",
            )
        try:
            parts = urlsplit(value)
            complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, half an IPv6 address
            complete = False
        if not complete or any(character.isspace() or not character.isprintable() for character in value):
            raise ValueError("expected an address without spaces, as in http://localhost:8000/v1")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*", value, re.ASCII):
            raise PydanticCustomError(
                SECRET, "expected the name of an environment variable, as in OPENAI_API_KEY, and not a key itself"
            )
        return value


class RewardConfig(Section):
    """Exactly one of model, function and judge."""

    model: str | None = Field(None, description="folder or hub id of a sequence-classification model")
    label: int | None = Field(None, ge=0, description="which of the model's outputs, where it has several")
    function: str | None = Field(
        None, description="package.module:name or file.py:name; called with a prompt and its responses, returns numbers"
    )
    judge: JudgeConfig | None = None

    @model_validator(mode="after")
    def _one(self) -> RewardConfig:
        given = [name for name in ("model", "function", "judge") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of model, function and judge, found {' and '.join(given) or 'none'}")
        if self.label is not None and self.model is None:
            raise ValueError("label goes with model")
        return self
