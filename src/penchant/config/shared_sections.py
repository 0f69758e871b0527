"""Sections that runs share with recipes and comparisons: how texts are read, and where candidates' scores come from."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from penchant.config.section import SECRET, Section
from penchant.data.rendering import RESERVED, AsChat, ControlText, Learn, Refused, Rendering
from penchant.data.tokenized import Truncation


class JudgeConfig(Section):
    """A judge: a language model behind an OpenAI-compatible endpoint."""

    url: str = Field(
        description="the endpoint's base address, without /chat/completions, as in http://localhost:8000/v1"
    )
    model: str = Field(description="the model's name at the endpoint")
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="environment variable that contains the API key; it may be unset"
    )
    prompt: str | None = Field(
        None,
        description="file with the judge's prompt, a template with {prompt}, {first} and {second}; of ratings without "
        "{second}, of ratings by a rubric with {reference}",
    )
    timeout_s: float = Field(60, gt=0, description="seconds to wait for an answer")
    retries: int = Field(
        4, ge=0, description="number of retries after a time-out, status 429 or 5xx, or an answer without a verdict"
    )
    parallel: int = Field(4, ge=1, description="number of concurrent requests")
    request: dict[str, Any] = Field(
        {},
        description="fields of every request besides model and messages, over {temperature: 0}; null leaves one out, "
        "as in {temperature: null, max_completion_tokens: 2000} for a model that refuses a temperature",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if any(mark in value for mark in "@?#"):
            raise PydanticCustomError(
                SECRET,
                "expected no user, password or query in the address, which is written to logs and reports. Put the key "
                "into the environment variable that api_key_env names",
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
    def _check_variable_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*", value, re.ASCII):
            raise PydanticCustomError(
                SECRET, "expected the name of an environment variable, as in OPENAI_API_KEY, and not a key itself"
            )
        return value

    @field_validator("request")
    @classmethod
    def _check_request(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in ("model", "messages", "stream"):
            if name in value:
                raise ValueError(f"{name} cannot be set here: expected other fields, as in {{max_tokens: 200}}")
        return value

    @property
    def source(self) -> str:
        """What decides the answers besides the question, as the name of cached answers."""
        fields = f" {json.dumps(self.request, sort_keys=True)}" if self.request else ""
        return f"{self.url} {self.model}{fields}"


class RewardConfig(Section):
    """The source of scores: exactly one of model, function and judge."""

    model: str | None = Field(None, description="folder or hub id of a sequence-classification model")
    label: int | None = Field(
        None, ge=0, description="index of the output that is the reward, for a model with several outputs"
    )
    function: str | None = Field(
        None,
        description="package.module:name or file.py:name of a function that takes a prompt and its responses and "
        "returns numbers",
    )
    judge: JudgeConfig | None = None

    @model_validator(mode="after")
    def _check_one_source(self) -> RewardConfig:
        sources = [name for name in ("model", "function", "judge") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ValueError(f"expected one of model, function and judge, found {' and '.join(sources) or 'none'}")
        if self.label is not None and self.model is None:
            raise ValueError("label is a setting of model, which is not set")
        return self


class ReadingConfig(Section):
    """How rows are tokenized, and what happens to rows that break a limit."""

    chat_template: str | None = Field(None, description="file with a Jinja chat template")
    chat_template_kwargs: dict[str, Any] = Field(
        {},
        description="variables for the chat template, as in {enable_thinking: false}; a row's variables override them",
    )
    date: str | None = Field(
        None,
        description="the date that the chat template uses as today's, as in 2026-11-30; null: the day the run starts",
    )
    as_chat: AsChat = Field(
        "auto",
        description="whether plain prompts and responses are read as a user's and an assistant's message; auto leaves "
        "them plain and warns where the model has a chat template",
    )
    control_text: ControlText = Field(
        "text",
        description="treatment of control tokens inside messages: read as plain text, as the token, or an error",
    )
    learn: Learn | None = Field(
        None,
        description="assistant turns to train on; last: the response; all: also those in the prompt; null: all for "
        "sft, last for preferences",
    )
    max_length: int | None = Field(
        None, ge=2, description="maximum tokens of prompt + response; null: the model's context length"
    )
    truncation: Truncation = Field("error", description="what to do with rows longer than max_length")
    empty: Literal["error", "drop"] = Field("error", description="what to do with groups that have an empty candidate")
    identical: Literal["error", "drop"] = Field(
        "error", description="what to do with groups whose chosen and rejected response are equal"
    )
    refused: Refused = Field(
        "error", description="what to do with rows that the chat template rejects or the tokenizer cannot read"
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _check_reserved_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in RESERVED:
                raise ValueError(f"{name!r} cannot be set as a variable: it {RESERVED[name]}")
        return value

    @field_validator("date", mode="before")
    @classmethod
    def _date_as_text(cls, value: object) -> object:
        # YAML reads 2026-11-30 as a date.
        if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
            return value.isoformat()
        return value

    @field_validator("date")
    @classmethod
    def _check_date(cls, value: str | None) -> str | None:
        try:
            return None if value is None else datetime.date.fromisoformat(value).isoformat()
        except ValueError as error:
            raise ValueError(f"{value!r} is not a date; expected one as in 2026-11-30") from error

    @field_validator("as_chat", mode="before")
    @classmethod
    def _bool_as_text(cls, value: object) -> object:
        # YAML reads true as a bool.
        return str(value).lower() if isinstance(value, bool) else value

    def rendering(self, learn: Learn) -> Rendering:
        """How rows are rendered as text.

        Args:
            learn: the assistant turns to train on where the key `learn` is null.
        """
        return Rendering(
            self.chat_template_kwargs, self.date, self.as_chat, self.control_text, self.learn or learn, self.refused
        )
