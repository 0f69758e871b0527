"""Requests and error responses of the OpenAI protocol: chat completions and completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from penchant.data.conversations import messages, template_context
from penchant.data.fields import Cell, ReadLog, Row
from penchant.data.messages import Message, with_context

WITHOUT_EFFECT = frozenset(
    {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
"""Parameters that never change an answer: its user, its storage and its price; ignored where they are unsupported."""

OFF: Mapping[str, Sequence[Any]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "stop_token_ids": ([],),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "top_k": (-1, 0),
    "use_beam_search": (False,),
}
"""The values at which each parameter has no effect."""

MESSAGE_OFF: Mapping[str, Sequence[Any]] = {"annotations": ([],), "tool_calls": ([],)}
"""The same for fields of a message: the official client sends an answer back with all its fields."""


def without_neutral(fields: Mapping[str, Any], supported: frozenset[str]) -> dict[str, Any]:
    """A request's parameters without nulls, without those of no effect, and without unsupported ones that are off."""
    return {
        name: value
        for name, value in fields.items()
        if value is not None and (name in supported or not (name in WITHOUT_EFFECT or is_off(name, value, OFF)))
    }


def is_off(name: str, value: object, off: Mapping[str, Sequence[Any]]) -> bool:
    """Whether the parameter has no effect at this value."""
    return any(value == neutral for neutral in off.get(name, ()))


def refusal_text(name: str) -> str:
    """The message of the refusal of an unsupported parameter."""
    if name in OFF:
        values = " or ".join(repr(value) for value in OFF[name])
        return f"'{name}' is not supported: leave it out, or send {values}, which changes nothing"
    return f"'{name}' is not supported; leave it out"


class Refusal(Exception):
    """An error response to a request.

    Args:
        status: HTTP status.
        kind: the protocol's `type`, such as invalid_request_error.
        message: description of the error for people.
        param: name of the parameter that is wrong.
        code: identifier of the error for programs.
    """

    def __init__(self, status: int, kind: str, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.kind, self.message, self.param, self.code = status, kind, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The response's JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> Refusal:
    """The refusal of an invalid request."""
    return Refusal(status, "invalid_request_error", message, param=param, code=code)


def invalid_field(kind: str, message: str, path: Sequence[str | int], body: object) -> Refusal:
    """The refusal of a request with a field that does not follow the protocol.

    Args:
        kind: pydantic's type of the error, such as ``extra_forbidden``.
        message: pydantic's message.
        path: pydantic's path of the field in the body, which contains members of unions too.
        body: the body's JSON value.
    """
    field = field_name(path, body, kind == "missing")
    if kind == "extra_forbidden":
        return invalid(refusal_text(field), param=field, code="unsupported_parameter")
    return invalid(f"{field}: {message}" if field else message, param=field or None)


def field_name(path: Sequence[str | int], body: object, missing: bool) -> str:
    """Name of the wrong field of a request, as in ``messages.0.content``, without the members of unions."""
    parts: list[str] = []
    for part in path:
        try:
            body = body[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            if parts and not missing:
                break
        parts.append(str(part))
    return ".".join(parts)


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
    """A request for a chat completion; where `store` is false, a server that learns does not store it."""

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
    store: bool = True

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
