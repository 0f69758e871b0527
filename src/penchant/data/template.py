"""What a chat template accepts and writes, determined by rendering samples, and cached for each tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from penchant.data.messages import REASONING, Context, Message, content_of
from penchant.data.rendering import Rendering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


DATE_STRING = "date_string"
"""The variable from which templates without a clock take the date, as in ``30 Nov 2026``."""

_CLOCK = "strftime_now"
_TODAY: ContextVar[date | None] = ContextVar("penchant_today", default=None)
_TEXT, _KEY = "penchantword", "penchantkey"
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Template:
    """A chat template, and the input that it accepts.

    Attributes:
        source: text of the Jinja template.
    """

    source: str

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, tools: bool = False) -> Template:
        """The template of the tokenizer; where it has several, the one for conversations with or without tools."""
        return cls(tokenizer.get_chat_template(tools=[{}] if tools else None))

    def mentions(self, name: str) -> bool:
        """Whether the template's source contains the name of a variable or of a message's field."""
        return _mentions(self.source, name)

    @property
    def reads_clock(self) -> bool:
        """Whether the rendering depends on the clock."""
        return self.mentions(_CLOCK)

    def messages(self, messages: Sequence[Message]) -> list[Mapping[str, Any]]:
        """The messages with contents and call arguments in the form that this template renders completely."""
        return [self._message(message) for message in messages]

    def variables(self, rendering: Rendering, context: Context) -> dict[str, Any]:
        """The variables of the settings, overridden by the row's, with the date where the template has a variable."""
        variables = {**rendering.template_kwargs, **context.template_kwargs}
        if rendering.date is not None and not self.reads_clock and self.mentions(DATE_STRING):
            variables.setdefault(DATE_STRING, date.fromisoformat(rendering.date).strftime("%d %b %Y"))
        return variables

    def ignored(self, messages: Sequence[Message], rendering: Rendering, context: Context) -> list[str]:
        """Names of the events for parts of a conversation that this template ignores."""
        columns = {"tools": bool(context.tools), "documents": bool(context.documents)}
        events = [
            f"template_without_{name}" for name, is_used in columns.items() if is_used and not self.mentions(name)
        ]
        variables = {**rendering.template_kwargs, **context.template_kwargs}
        events += [f"template_without_variable_{name}" for name in variables if not self.mentions(name)]
        thinks = any(message.get(name) for message in messages for name in REASONING)
        if thinks and not any(map(self.mentions, REASONING)):
            events.append("template_without_reasoning")
        return events

    def _message(self, message: Message) -> Mapping[str, Any]:
        changes = self._content(message) | self._calls(message)
        return {**message, **changes} if changes else message

    def _content(self, message: Message) -> dict[str, Any]:
        content = message.get("content")
        if isinstance(content, list) and not _takes_parts(self.source, message["role"]):
            return {"content": content_of(message)}
        if isinstance(content, str) and not _takes_text(self.source, message["role"]):
            return {"content": [{"type": "text", "text": content}]}
        return {}

    def _calls(self, message: Message) -> dict[str, Any]:
        calls = message.get("tool_calls")
        if not calls or not _wants_arguments_as_text(self.source):
            return {}
        functions = ({**call["function"], "arguments": _json(call["function"]["arguments"])} for call in calls)
        return {"tool_calls": [{**call, "function": function} for call, function in zip(calls, functions, strict=True)]}


@lru_cache(maxsize=256)
def _mentions(source: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", source) is not None


def reads_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a chat template of the tokenizer reads the clock."""
    return any(template.reads_clock for template in _templates(tokenizer))


def has_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a chat template of the tokenizer writes a date that can be set."""
    return any(template.reads_clock or template.mentions(DATE_STRING) for template in _templates(tokenizer))


def _templates(tokenizer: PreTrainedTokenizerBase) -> list[Template]:
    template = tokenizer.chat_template
    sources = list(template.values()) if isinstance(template, dict) else [template]
    return [Template(source) for source in sources if source is not None]


@contextmanager
def fixed_date(source: str, day: str | None) -> Iterator[None]:
    """Context in which the template's clock shows midnight of a day.

    Args:
        source: text of the chat template.
        day: the day, as in ``2026-11-30``; None for the real clock.
    """
    if _CLOCK not in source:
        yield
        return
    from transformers.utils.chat_template_utils import _compile_jinja_template

    # A variable cannot replace the clock, because the library does not pass functions to the template.
    _compile_jinja_template(source).globals[_CLOCK] = _strftime_now
    token = _TODAY.set(None if day is None else date.fromisoformat(day))
    try:
        yield
    finally:
        _TODAY.reset(token)


def _strftime_now(format: str) -> str:
    day = _TODAY.get()
    return (datetime.now() if day is None else datetime.combine(day, time())).strftime(format)


@lru_cache(maxsize=256)
def _takes_text(source: str, role: str) -> bool:
    """Whether a text as content is rendered; also True where neither a text nor a list of parts is."""
    return _has_text_alone(_render(source, role, _TEXT)) or not _takes_parts(source, role)


@lru_cache(maxsize=256)
def _takes_parts(source: str, role: str) -> bool:
    """Whether a list of parts is rendered as its text alone."""
    return _has_text_alone(_render(source, role, [{"type": "text", "text": _TEXT}]))


def _has_text_alone(text: str | None) -> bool:
    return text is not None and _TEXT in text and "'type'" not in text and '"type"' not in text


@lru_cache(maxsize=64)
def _wants_arguments_as_text(source: str) -> bool:
    """Whether the template pastes arguments as they are, so that they must be JSON text; most convert an object."""
    as_object, as_text = (_render(source, "assistant", "", arguments) for arguments in ({_KEY: 1}, _json({_KEY: 1})))
    if (as_object is not None and f'"{_KEY}"' in as_object) or as_text is None:
        return False
    pasted = f'"{_KEY}"' in as_text and f'\\"{_KEY}' not in as_text
    return pasted and (as_object is None or f"'{_KEY}'" in as_object)


def _render(source: str, role: str, content: object, arguments: object = None) -> str | None:
    """Text of a small conversation with this content in the message of this role; None where the template refuses it.

    Args:
        source: text of the chat template.
        role: role of the message with the content.
        content: content of the message.
        arguments: arguments of a tool call of the assistant; None for no call.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    call = {"id": "penchant0", "type": "function", "function": {"name": "f", "arguments": arguments or {}}}
    answer: dict[str, Any] = {"role": "assistant", "content": content if role == "assistant" else "a"}
    turns: list[dict[str, Any]] = [{"role": "user", "content": content if role == "user" else "a"}]
    if role in ("system", "developer"):
        turns.insert(0, {"role": role, "content": content})
    elif role == "tool":
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        turns += [answer, {"role": "tool", "tool_call_id": "penchant0", "name": "f", "content": content}]
    elif arguments is not None:
        turns.append({**answer, "tool_calls": [call]})
    elif role == "assistant":
        turns.append(answer)
    try:
        [text], _ = render_jinja_template(conversations=[turns], chat_template=source, **dict.fromkeys(_NAMES, ""))
    except Exception:  # A template is a program: it can raise anything.
        return None
    return str(text)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
