"""The tokens that a tokenizer's chat template writes around messages, learnt by rendering probe conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

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
