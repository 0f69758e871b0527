"""Pydantic models of the requests of the OpenAI protocol: chat completions and completions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from penchant.data.calls import template_context
from penchant.data.conversations import messages
from penchant.data.fields import Cell, ReadLog, Row
from penchant.data.messages import Message, with_context
from penchant.serving.neutral import MESSAGE_OFF, is_off, without_neutral

MAX_CHOICES = 128
MAX_TOP_LOG_PROBS = 20


class Part(BaseModel):
    """Base of the models, which refuse unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Turn(Part):
    """A message; an assistant's may be an earlier answer as the official client returns it, with empty fields."""

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


class StreamOptions(Part):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False
    continuous_usage_stats: Literal[False] = False


class FunctionSpec(BaseModel):
    """An offered function; fields other than its name and parameters go to the chat template."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1)
    parameters: dict[str, Any] | None = None


class Tool(Part):
    """An offered tool."""

    type: Literal["function"] = "function"
    function: FunctionSpec


class FunctionName(Part):
    """The name of a function."""

    name: str


class NamedTool(Part):
    """The tool that the answer must call."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(Part):
    """The JSON schema of an answer."""

    name: str
    json_schema: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextFormat(Part):
    """Response format: any text."""

    type: Literal["text"]


class JsonObjectFormat(Part):
    """Response format: any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Part):
    """Response format: JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class CompletionSettings(Part):
    """The supported parameters of both kinds of requests; any other one that would change the answer is refused."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)

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
    def stops(self) -> tuple[str, ...]:
        """The sequences that end an answer's text."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens of an answer; None where the client names none."""
        return self.max_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(CompletionSettings):
    """A request for a chat completion."""

    prompt_field: ClassVar[str] = "messages"
    messages: list[Turn] = Field(min_length=1)
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOG_PROBS)

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        names = [tool.function.name for tool in self.tools or ()]
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice 'required' needs tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names '{self.tool_choice.function.name}', which is not among the tools")
        return self

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The messages with the offered tools and the variables of the chat template.

        Raises:
            DataError: a content is not text, or the arguments of a call are not JSON.
        """
        turns = [turn.model_dump(exclude_none=True) for turn in self.messages]
        tools = [tool.model_dump(exclude_unset=True) for tool in self.offered_tools]
        columns = {"tools": tools or None, "chat_template_kwargs": self.chat_template_kwargs}
        row = Row(columns, "the request", 0, ReadLog())
        return with_context(messages(Cell(turns, "messages", row)), template_context(row))

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the chat template renders."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools whose calls are accepted."""
        choice = self.tool_choice
        if isinstance(choice, NamedTool):
            return [tool for tool in self.offered_tools if tool.function.name == choice.function.name][:1]
        return self.offered_tools

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens of an answer; None where the client names none."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def top(self) -> int | None:
        """Number of likeliest tokens to report at each step; None for no log-probs."""
        return self.top_logprobs if self.logprobs else None


class CompletionRequest(CompletionSettings):
    """A request for a completion of prompts that are text or token ids, without a chat template."""

    prompt_field: ClassVar[str] = "prompt"
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOG_PROBS)

    @field_validator("prompt")
    @classmethod
    def _not_nothing(cls, prompt: list[Any] | str) -> list[Any] | str:
        if isinstance(prompt, list) and (not prompt or [] in prompt):
            raise ValueError("expected at least one prompt, and a token in each list of ids")
        return prompt

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each of which gets `n` answers."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [token for token in self.prompt if isinstance(token, int)]
        return [ids] if ids else [prompt for prompt in self.prompt if not isinstance(prompt, int)]

    @property
    def top(self) -> int | None:
        """Number of likeliest tokens to report at each step; None for no log-probs."""
        return self.logprobs
