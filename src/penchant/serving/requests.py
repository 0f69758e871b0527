"""What a client may ask, and how a refusal looks: by the OpenAI chat completions protocol."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from penchant.data.calls import context
from penchant.data.conversations import messages
from penchant.data.fields import Cell, Ledger, Row
from penchant.data.messages import Message, in_context


class Turn(BaseModel):
    """A message; an assistant's may be what was answered before, its fields of null left out."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {name: held for name, held in value.items() if held is not None} if isinstance(value, dict) else value


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class ChatRequest(BaseModel):
    """Of the protocol's parameters those that are honoured; any other is refused, not ignored."""

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
    n: Literal[1] = 1
    user: str | None = None

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


class Refusal(Exception):
    """An answer with an error.

    Args:
        status: of HTTP.
        kind: the protocol's `type`, as invalid_request_error.
        param: the parameter at fault.
        code: for programs.
    """

    def __init__(self, status: int, kind: str, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.kind, self.message, self.param, self.code = status, kind, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> Refusal:
    """The client's mistake."""
    return Refusal(status, "invalid_request_error", message, param=param, code=code)
