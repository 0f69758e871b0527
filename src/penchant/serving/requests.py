"""What a client may ask, by the OpenAI chat completions protocol."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from penchant.data.calls import context
from penchant.data.conversations import messages
from penchant.data.fields import Cell, Ledger, Row
from penchant.data.messages import Message, in_context
from penchant.serving.neutral import MESSAGE_OFF, is_off, without_neutral


class Turn(BaseModel):
    """A message; an assistant's may be an earlier answer as the official client holds it, with empty fields."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, message: Any) -> Any:
        if not isinstance(message, dict):
            return message
        return {
            name: value for name, value in message.items() if value is not None and not is_off(name, value, MESSAGE_OFF)
        }


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: Literal[False] = False
    continuous_usage_stats: Literal[False] = False


class ChatRequest(BaseModel):
    """Of the protocol's parameters those that are honoured; any other that would change the answer is refused."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[Turn] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] = "auto"
    chat_template_kwargs: dict[str, Any] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, fields: Any) -> Any:
        return without_neutral(fields, frozenset(cls.model_fields)) if isinstance(fields, dict) else fields

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is not None and not all([value] if isinstance(value, str) else value):
            raise ValueError("an empty stop sequence would stop everything")
        return value

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The messages with their tools and the chat template's variables.

        Raises:
            DataError: content that is no text, or a call's arguments that are no JSON.
        """
        turns = [turn.model_dump(exclude_none=True) for turn in self.messages]
        tools = self.tools if self.tool_choice == "auto" else None
        row = Row({"tools": tools, "chat_template_kwargs": self.chat_template_kwargs}, "the request", 0, Ledger())
        return in_context(messages(Cell(turns, "messages", row)), context(row))

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def limit(self) -> int | None:
        """Tokens of the answer at most."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
