"""Messages of a conversation, and their context for the chat template: tools, documents and variables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

ASSISTANT = "assistant"
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Fields of a message that may contain its reasoning; templates read one of them."""


class Function(TypedDict):
    """Name and arguments of a tool call; the arguments are an object, which templates write as JSON."""

    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict):
    """One tool call in OpenAI's form."""

    type: str
    function: Function
    id: NotRequired[str]


class Part(TypedDict):
    """A part of a message's content; only parts of type text are accepted."""

    type: str
    text: str


class Message(TypedDict):
    """One turn of a conversation in the form of chat templates, which may read further JSON fields."""

    role: str
    content: NotRequired[str | list[Part]]
    name: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]
    thinking: NotRequired[str]


@dataclass(frozen=True)
class Context:
    """The context of a conversation's messages.

    Attributes:
        tools: JSON schemas of the functions that the model may call, in OpenAI's form.
        documents: documents that the model may cite.
        template_kwargs: variables for the chat template; they override the run's.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    documents: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """The non-empty fields, by the names of a row's columns."""
        columns = {
            "tools": list(self.tools),
            "documents": list(self.documents),
            "chat_template_kwargs": dict(self.template_kwargs),
        }
        return {name: value for name, value in columns.items() if value}


NO_CONTEXT = Context()


class Conversation(tuple[Message, ...]):
    """Messages with their context.

    A conversation is a tuple of messages, so a prompt carries its tools to every model, judge and reward without an
    extra argument. Two conversations are equal if their messages and contexts are. A slice, or the sum of two
    conversations, is a plain tuple; `with_context` adds the context again.
    """

    context: Context

    def __new__(cls, messages: Iterable[Message], context: Context = NO_CONTEXT) -> Conversation:
        conversation = super().__new__(cls, messages)
        conversation.context = context
        return conversation

    def __eq__(self, messages: object) -> bool:
        return isinstance(messages, tuple) and tuple(self) == tuple(messages) and self.context == context_of(messages)

    def __ne__(self, messages: object) -> bool:
        return not self == messages

    __hash__ = tuple.__hash__

    def __repr__(self) -> str:
        return f"Conversation({tuple(self)!r}, {self.context!r})"


Text = str | tuple[Message, ...]
"""Plain text, or the messages of a conversation."""


def context_of(text: object) -> Context:
    """The context of a conversation; the empty context for plain text."""
    return text.context if isinstance(text, Conversation) else NO_CONTEXT


def with_context(messages: Iterable[Message], context: Context) -> tuple[Message, ...]:
    """The messages with this context; a plain tuple where it is empty."""
    return Conversation(messages, context) if context.columns() else tuple(messages)


def content_of(message: Message) -> str:
    """A message's text; where it has parts, their texts on separate lines; empty where it has no content."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def response_messages(text: Text) -> tuple[Message, ...]:
    """A candidate as messages; plain text becomes one message of the assistant."""
    return (Message(role=ASSISTANT, content=text),) if isinstance(text, str) else text


def is_blank(candidate: Text) -> bool:
    """Whether a candidate contains only white space: no text, no tool call and no reasoning."""
    if isinstance(candidate, str):
        return not candidate.strip()
    return not any(_has_content(message) for message in candidate)


def _has_content(message: Message) -> bool:
    if content_of(message).strip() or message.get("tool_calls"):
        return True
    return any(str(message.get(name) or "").strip() for name in REASONING)


def as_text(value: Text) -> str:
    """Plain text of a prompt or candidate, for display and for comparison.

    Messages are joined as ``role: content``, with their other fields on the next lines; tools and other context come
    first. Inputs that a chat template could render differently have different texts.
    """
    if isinstance(value, str):
        return value
    context_lines = [f"{name}: {_json(value_beside)}" for name, value_beside in context_of(value).columns().items()]
    return "\n\n".join([*context_lines, *map(_turn_text, value)])


def as_json(value: Text) -> Any:
    """A prompt or candidate as JSON: text, a list of messages, or an object of messages and context."""
    columns = context_of(value).columns()
    return {"messages": list(value), **columns} if columns else value


def _turn_text(message: Message) -> str:
    fields: dict[str, Any] = {name: value for name, value in message.items() if name not in ("role", "content")}
    lines = [f"{name}: {field if isinstance(field, str) else _json(field)}" for name, field in fields.items()]
    return "\n".join([f"{message['role']}: {content_of(message)}", *lines])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def same_turn(turns: Sequence[Message]) -> bool:
    """Whether messages are equal in all fields except those that a data set may add (ids, times)."""
    first_fields, *other_fields = ({name: turn.get(name) for name in _COMPARED_FIELDS} for turn in turns)
    return all(fields == first_fields for fields in other_fields)


_COMPARED_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", *REASONING)
