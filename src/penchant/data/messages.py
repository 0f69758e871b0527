"""Messages of a conversation, and what a chat template is handed beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

ASSISTANT = "assistant"
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Fields of a message that hold what was thought before it; templates read one of them."""


class Function(TypedDict):
    """What a call calls; the arguments are an object, which templates write as JSON themselves."""

    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict):
    """One call, in OpenAI's form."""

    type: str
    function: Function
    id: NotRequired[str]


class Part(TypedDict):
    """A part of a message's content; parts that are no text are refused."""

    type: str
    text: str


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it; any other field of plain JSON is theirs too."""

    role: str
    content: NotRequired[str | list[Part]]
    name: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]
    thinking: NotRequired[str]


@dataclass(frozen=True)
class Context:
    """What stands beside a conversation's messages.

    Attributes:
        tools: JSON schemas of the functions that may be called, in OpenAI's form.
        documents: what may be cited.
        template_kwargs: variables for the chat template, on top of the run's.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    documents: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """Those that are there, as a row's columns."""
        columns = {
            "tools": list(self.tools),
            "documents": list(self.documents),
            "chat_template_kwargs": dict(self.template_kwargs),
        }
        return {name: value for name, value in columns.items() if value}


NO_CONTEXT = Context()


class Conversation(tuple[Message, ...]):
    """Messages with their context.

    It is a tuple of messages wherever only these are asked for, so a prompt carries its tools to every model, judge and
    reward without an argument of its own. Two conversations are equal where messages and context are. A slice, or a sum
    of two, is a plain tuple: `in_context` puts the context back.
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
    """What stands beside the messages; nothing beside plain text."""
    return text.context if isinstance(text, Conversation) else NO_CONTEXT


def with_context(messages: Iterable[Message], context: Context) -> tuple[Message, ...]:
    """The messages with this context; a plain tuple where it is empty."""
    return Conversation(messages, context) if context.columns() else tuple(messages)


def content_of(message: Message) -> str:
    """A message's text; its parts' where it has parts, one below the other; empty where it has no content."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def response_messages(text: Text) -> tuple[Message, ...]:
    """A candidate as messages; plain text is the assistant's."""
    return (Message(role=ASSISTANT, content=text),) if isinstance(text, str) else text


def is_blank(candidate: Text) -> bool:
    """Whether a candidate holds nothing but white space: no text, no call, no thought."""
    if isinstance(candidate, str):
        return not candidate.strip()
    return not any(_has_content(message) for message in candidate)


def _has_content(message: Message) -> bool:
    if content_of(message).strip() or message.get("tool_calls"):
        return True
    return any(str(message.get(name) or "").strip() for name in REASONING)


def as_text(value: Text) -> str:
    """Plain text of a prompt or candidate, for people and for comparing.

    Messages are joined as ``role: content``, their other fields on lines below; tools and whatever else is beside them
    come first. Two texts that a chat template could tell apart are two.
    """
    if isinstance(value, str):
        return value
    context_lines = [f"{name}: {_json(value_beside)}" for name, value_beside in context_of(value).columns().items()]
    return "\n\n".join([*context_lines, *map(_turn_text, value)])


def as_json(value: Text) -> Any:
    """A prompt or candidate as JSON that no other has: text, a list of messages, or an object with their context."""
    columns = context_of(value).columns()
    return {"messages": list(value), **columns} if columns else value


def _turn_text(message: Message) -> str:
    fields: dict[str, Any] = {name: value for name, value in message.items() if name not in ("role", "content")}
    lines = [f"{name}: {field if isinstance(field, str) else _json(field)}" for name, field in fields.items()]
    return "\n".join([f"{message['role']}: {content_of(message)}", *lines])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def same_turn(turns: Sequence[Message]) -> bool:
    """Whether messages say the same, whatever fields of their own a data set has given them (ids, times)."""
    first_fields, *other_fields = ({name: turn.get(name) for name in _COMPARED_FIELDS} for turn in turns)
    return all(fields == first_fields for fields in other_fields)


_COMPARED_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", *REASONING)
