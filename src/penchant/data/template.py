"""What a chat template accepts and writes, determined by rendering samples, and cached for each tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from penchant.data.messages import REASONING, Context, Message, content_of
from penchant.data.rendering import Rendering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Value = TypeVar("Value")


def cached_per_tokenizer(
    compute: Callable[[PreTrainedTokenizerBase], Value],
) -> Callable[[PreTrainedTokenizerBase], Value]:
    """A function that returns the cached value for each living tokenizer; the value must not refer to the tokenizer.

    A call compares all of the tokenizer's added tokens, which takes 0.1 ms for 256 tokens: too slow for every row.
    """
    cache: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, Value]] = WeakKeyDictionary()

    @wraps(compute)
    def cached(tokenizer: PreTrainedTokenizerBase) -> Value:
        # Text rather than the object, because a mapping of several templates can be changed in place.
        template = str(tokenizer.chat_template)
        key = (template, tokenizer.special_tokens_map, len(tokenizer.added_tokens_decoder))
        entry = cache.get(tokenizer)
        if entry is None or entry[0] != key:
            entry = cache[tokenizer] = (key, compute(tokenizer))
        return entry[1]

    return cached


_SYSTEM, _ASK, _ANSWER, _ASK_AGAIN, _VALUE = "penchantsystem", "penchantask", "penchantanswer", "penchantmore", "value0"
_BASIC = {"bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"}
_Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class TemplateTokens:
    """The tokens that a tokenizer's chat template writes around messages.

    Attributes:
        renders: whether the template renders a plain question with its answer.
        turn_end: id of the token after an assistant's answer; None where the template writes none.
        ends: all ids that end an assistant's turn: `turn_end`, the end of an earlier turn, the end of tool calls.
        control: texts of the control tokens; the rule is in docs/tokenization.md.
        marks: texts of the added tokens in the rendering of a question with its answer: plain text that contains one
            of them is already rendered. All added tokens where the template refuses the two messages.
    """

    renders: bool
    turn_end: int | None
    ends: frozenset[int]
    control: tuple[str, ...]
    marks: frozenset[str]

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> TemplateTokens:
        """The template tokens of a tokenizer; cached until its tokens or its template change."""
        return _probe_tokens(tokenizer)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of all special tokens except the unknown token."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


@cached_per_tokenizer
def _probe_tokens(tokenizer: PreTrainedTokenizerBase) -> TemplateTokens:
    return _Probe(tokenizer).tokens()


class _Probe:
    """Renders small conversations by a tokenizer's template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._added = (set(tokenizer.added_tokens_decoder) | self._special) - {tokenizer.unk_token_id}
        self._never_ends = {tokenizer.bos_token_id, tokenizer.pad_token_id} - {tokenizer.eos_token_id}

    def tokens(self) -> TemplateTokens:
        """The template's tokens, from all renderings."""
        exchange = self._render([_user(_ASK), _assistant(_ANSWER)])
        plain = exchange or self._render([_system(), _user(_ASK), _assistant(_ANSWER)])
        longer = self._render([_user(_ASK), _assistant(_ANSWER), _user(_ASK_AGAIN)], answer_next=True)
        call = self._call()
        turn_end = self._turn_end(plain)
        ends = {i for i in (turn_end, self._earlier_end(longer), self._call_end(call)) if i is not None}
        in_call = set(self._ids(call.rpartition(_ASK)[2]))
        around = self._around_messages(plain, longer, in_call)
        content = (in_call | self._content()) - around
        tokenizer = self._tokenizer
        in_source = {i for i in self._special if self._literal(i) in str(tokenizer.chat_template or "")} - content
        basic = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id} - {None}
        control = {self._literal(i) for i in around | in_source | basic | ends}
        return TemplateTokens(
            renders=_ANSWER in plain,
            turn_end=turn_end,
            ends=frozenset(ends),
            control=tuple(sorted(control - {""})),
            marks=self._marks(exchange),
        )

    def _marks(self, exchange: str) -> frozenset[str]:
        tokenizer = self._tokenizer
        if tokenizer.chat_template is None:
            return frozenset()
        added = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
        return frozenset(token for token in added if token and (token in exchange or not exchange))

    def _turn_end(self, plain: str) -> int | None:
        """Id of the first added token after the answer."""
        _, answer, behind = plain.rpartition(_ANSWER)
        return next((i for i in self._ids(behind) if i not in self._never_ends), None) if answer else None

    def _earlier_end(self, longer: str) -> int | None:
        """Id of the token between an answer and the next question; None where it may begin that question.

        It counts as the end of the answer only if the question ends with it too. A template may end the last turn with
        another token than the earlier ones.
        """
        behind_answer, behind_question = self._gaps(longer)
        is_same_end = behind_answer[:1] == behind_question[:1] and behind_answer[:1] != behind_answer[-1:]
        return behind_answer[0] if behind_answer and is_same_end and behind_answer[0] not in self._never_ends else None

    def _call_end(self, call: str) -> int | None:
        """Id of the special token that ends a turn of tool calls."""
        _, value, behind = call.rpartition(_VALUE)
        ids = self._tokenizer(behind.rstrip(), add_special_tokens=False)["input_ids"] if value else []
        last = ids[-1] if ids else None
        return last if last in self._special - self._never_ends else None

    def _around_messages(self, plain: str, longer: str, in_call: set[int]) -> set[int]:
        """Ids of the special tokens around messages and tool results, and of other added tokens that bound a turn."""
        system = self._render([_system(), _user(_ASK)], answer_next=True)
        result = {"role": "tool", "name": "probe", "tool_call_id": "probe0000", "content": _ASK_AGAIN}
        tool_exchange = self._render([_user(_ASK), _calling(), result], tools=[_TOOL])
        around = {i for text in (plain, longer, system) for i in self._ids(text)}
        behind_answer, behind_question = self._gaps(longer)
        bounds = {*behind_answer, *behind_question[:1]}
        return (around & self._special) | (set(self._ids(tool_exchange)) & self._special - in_call) | bounds

    def _gaps(self, longer: str) -> tuple[list[int], list[int]]:
        """Ids of the added tokens between the answer and the next question, and after that question."""
        _, answer, behind_answer = longer.partition(_ANSWER)
        gap, question, behind_question = behind_answer.partition(_ASK_AGAIN)
        return (self._ids(gap), self._ids(behind_question)) if answer and question else ([], [])

    def _content(self) -> set[int]:
        """Ids of the added tokens that represent a message's content: reasoning, images, audio."""
        reasoning_message = {"role": "assistant", "content": _ANSWER, "reasoning_content": _VALUE, "thinking": _VALUE}
        texts = [self._render([_user(_ASK), reasoning_message]).rpartition(_ASK)[2]]
        for kind in ("image", "video", "audio"):
            texts.append(self._render([{"role": "user", "content": [{"type": kind}, {"type": "text", "text": _ASK}]}]))
        named_tokens = self._tokenizer.special_tokens_map.items()
        texts += [token for name, token in named_tokens if name not in _BASIC and isinstance(token, str)]
        return {i for text in texts for i in self._ids(text)}

    def _call(self) -> str:
        return self._render([_user(_ASK), _calling()], tools=[_TOOL]) or self._render([_user(_ASK), _calling()])

    def _render(self, messages: _Messages, *, answer_next: bool = False, tools: list[Any] | None = None) -> str:
        """Text of the messages; empty where the template refuses them."""
        if self._tokenizer.chat_template is None:
            return ""
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=answer_next, tools=tools
            )
        except Exception:  # A template is a program: it can raise anything.
            return ""
        return str(text)

    def _ids(self, text: str) -> list[int]:
        """Ids of the added tokens of a text, in order."""
        if not text:
            return []
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return [i for i in ids if i in self._added and not self._literal(i).isspace()]

    def _literal(self, token: int) -> str:
        added = self._tokenizer.added_tokens_decoder.get(token)
        return str(added) if added is not None else str(self._tokenizer.convert_ids_to_tokens(token))


def _system() -> dict[str, Any]:
    return {"role": "system", "content": _SYSTEM}


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _calling() -> dict[str, Any]:
    function = {"name": "probe", "arguments": {"of": _VALUE}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "probe0000", "type": "function", "function": function}],
    }


_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"of": {"type": "string", "description": "Of what."}}},
    },
}


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
