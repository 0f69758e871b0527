"""Settings of tokenization, which are keys of `data` in runs and recipes."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field, field_validator

from penchant.config.section import Section
from penchant.data.rendering import RESERVED, AsChat, ControlText, Learn, Refused, Rendering
from penchant.data.tokenized import Truncation


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
