"""How rows become tokens: the keys that a run and a recipe share below `data`."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field, field_validator

from penchant.config.section import Section
from penchant.data.rendering import RESERVED, AsChat, ControlText, Learn, Refused, Rendering
from penchant.data.tokenized import Truncation


class ReadingConfig(Section):
    """How rows become tokens, and what happens to those that do not fit."""

    chat_template: str | None = Field(None, description="file with a Jinja chat template")
    chat_template_kwargs: dict[str, Any] = Field(
        {},
        description="variables for the chat template, as in {enable_thinking: false}; a row's own come on top",
    )
    date: str | None = Field(
        None, description="the day a chat template writes as today's, as in 2026-11-30; null: the day the run starts"
    )
    as_chat: AsChat = Field(
        "auto",
        description="whether plain prompts and responses are read as a user's and an assistant's message; auto leaves "
        "them plain and warns where the model has a chat template",
    )
    control_text: ControlText = Field(
        "text", description="what a control token written inside a message becomes: plain text, the token, or an error"
    )
    learn: Learn | None = Field(
        None,
        description="assistant turns to learn from: last, the response; all, those of the prompt too; null: all "
        "for sft, last for preferences",
    )
    max_length: int | None = Field(None, ge=2, description="tokens of prompt + response; null: the model's context")
    truncation: Truncation = Field("error", description="what to do with longer rows")
    empty: Literal["error", "drop"] = Field("error", description="what to do with empty candidates")
    identical: Literal["error", "drop"] = Field("error", description="what to do where chosen equals rejected")
    refused: Refused = Field(
        "error", description="what to do with rows that the chat template refuses or the tokenizer cannot read"
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _not_reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in RESERVED:
                raise ValueError(f"{name!r} is no variable to set: it {RESERVED[name]}")
        return value

    @field_validator("date", mode="before")
    @classmethod
    def _day(cls, value: object) -> object:
        # YAML makes a date of 2026-11-30 itself.
        if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
            return value.isoformat()
        return value

    @field_validator("date")
    @classmethod
    def _iso(cls, value: str | None) -> str | None:
        try:
            return None if value is None else datetime.date.fromisoformat(value).isoformat()
        except ValueError as error:
            raise ValueError(f"{value!r} is no day, as 2026-11-30 is") from error

    @field_validator("as_chat", mode="before")
    @classmethod
    def _word(cls, value: object) -> object:
        # YAML reads true as a bool.
        return str(value).lower() if isinstance(value, bool) else value

    def rendering(self, learn: Learn) -> Rendering:
        """How rows become text.

        Args:
            learn: which turns are learnt where `learn` is null.
        """
        return Rendering(
            self.chat_template_kwargs, self.date, self.as_chat, self.control_text, self.learn or learn, self.refused
        )
