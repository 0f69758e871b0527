"""Control tokens inside messages, as in "What does <|im_end|> mean?", tokenized as ordinary text.

Before a template renders a message, each control token in it is replaced by a code that occurs in no data, so that the
only control tokens of the rendering are those of the template. `encode` turns the codes back into text, with the ids of
a tokenizer that does not know these tokens. Texts without codes are tokenized directly.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from penchant.data.messages import ASSISTANT, NO_CONTEXT, Context, Message
from penchant.data.rendering import Rendering
from penchant.data.template_tokens import TemplateTokens, cached_per_tokenizer
from penchant.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# Private-use characters that are random in each process: neither data nor a server's client can contain the same ones.
_MARK = "".join(chr(0xF0000 + secrets.randbelow(0xFFFE)) for _ in range(6))
_FIRST = 0x100000


def is_escaped(text: str) -> bool:
    """Whether a text contains codes, so that `ControlText.encode` has to tokenize it."""
    return _MARK in text


class ControlText:
    """Escapes a tokenizer's control tokens, and tokenizes escaped texts; `TemplateTokens` lists the control tokens.

    Attributes:
        tokens: texts of the control tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
        self.tokens = tuple(tokens)
        # A reference to the tokenizer itself would keep it alive: it is the weak key of the cache of this object.
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._codes = {token: _MARK + chr(_FIRST + i) for i, token in enumerate(self.tokens)}
        self._ids = {token: tokenizer.convert_tokens_to_ids(token) for token in self.tokens}
        longest_first = sorted(self.tokens, key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._token_or_code = re.compile(f"{_MARK}.|{self._token.pattern}", re.DOTALL)

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> ControlText:
        """The tokenizer's control text; cached until its tokens or its template change."""
        return _control_text(tokenizer)

    def find_tokens(self, value: object) -> list[str]:
        """The control tokens in all texts of a value, one entry per occurrence.

        Args:
            value: a text, or nested lists and mappings of texts, such as messages and tools.
        """
        # One search over all texts is faster; no token contains the separator.
        return self._token.findall("\0".join(_texts(value)))

    def escape(self, value: Any) -> Any:
        """The value with control tokens in its texts replaced by codes; the same object where there are none."""
        if isinstance(value, str):
            return self._token.sub(lambda match: self._codes[match[0]], value) if self.find_tokens(value) else value
        if isinstance(value, Mapping):
            return (
                {self.escape(key): self.escape(item) for key, item in value.items()}
                if self.find_tokens(value)
                else value
            )
        if isinstance(value, list | tuple):
            return [self.escape(item) for item in value] if self.find_tokens(value) else value
        return value

    def unescape(self, text: str) -> str:
        """The text with its codes replaced by their control tokens, for messages to a person."""
        tokens = {code: token for token, code in self._codes.items()}
        return re.sub(f"{_MARK}.", lambda match: tokens.get(match[0], ""), text, flags=re.DOTALL)

    def encode(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Token ids of escaped texts, without special tokens: codes are tokenized as text, control tokens as tokens."""
        if self._text_tokenizer is None:
            return [self._by_pieces(text, tokenizer) for text in texts]
        swapped = self._codes | {code: token for token, code in self._codes.items()}
        exchanged = [self._token_or_code.sub(lambda match: swapped.get(match[0], ""), text) for text in texts]
        return [encoding.ids for encoding in self._text_tokenizer.encode_batch(exchanged, add_special_tokens=False)]

    @cached_property
    def _text_tokenizer(self) -> Tokenizer | None:
        """The tokenizer with its control tokens renamed to their codes; None where the backend cannot be rebuilt."""
        from tokenizers import Tokenizer

        if self._backend is None:
            return None
        spec = json.loads(self._backend.to_str())
        for token in spec["added_tokens"]:
            token["content"] = self._codes.get(token["content"], token["content"])
        model = spec["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self._codes.get(piece, piece): i for piece, i in model["vocab"].items()}
        else:
            model["vocab"] = [[self._codes.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") in self._codes:
            model["unk_token"] = self._codes[model["unk_token"]]
        spec |= {"post_processor": None, "truncation": None, "padding": None}
        text_tokenizer = Tokenizer.from_str(json.dumps(spec))
        same_ids = all(text_tokenizer.token_to_id(self._codes[token]) == i for token, i in self._ids.items())
        return text_tokenizer if same_ids else None

    def _by_pieces(self, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids by a tokenizer written in Python: every code is tokenized as the letters of its control token."""
        tokens = {code: token for token, code in self._codes.items()}
        ids: list[int] = []
        for piece in re.split(f"({_MARK}.)", text, flags=re.DOTALL):
            token = tokens.get(piece)
            if token is None:
                ids += tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
                continue
            for letter in token:
                ids += tokenizer(letter, add_special_tokens=False)["input_ids"]
        return ids


@cached_per_tokenizer
def _control_text(tokenizer: PreTrainedTokenizerBase) -> ControlText:
    return ControlText(tokenizer, TemplateTokens.from_tokenizer(tokenizer).control)


def _texts(value: object) -> list[str]:
    """All texts of a value, including the keys of mappings."""
    if isinstance(value, str):
        return [value]
    items = (
        [*value, *value.values()] if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    )
    return [text for item in items for text in ((item,) if isinstance(item, str) else _texts(item))]


_ROLE = "role"


class ControlTextEscaper:
    """Prepares messages and their context for one tokenizer's template: control tokens that are text become codes.

    An end-of-turn token at the end of an assistant's message is removed, because the template writes it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> None:
        self._control = ControlText.from_tokenizer(tokenizer)
        self._setting = rendering.control_text
        template_end = TemplateTokens.from_tokenizer(tokenizer).turn_end
        end = tokenizer.eos_token_id if template_end is None else template_end
        literal = "(?!)" if end is None else re.escape(str(tokenizer.convert_ids_to_tokens(end)))
        self._written_ends = re.compile(rf"({literal}\s*)+$")

    def conversations(self, conversations: Sequence[Sequence[Message]]) -> tuple[list[list[Message]], list[str]]:
        """The conversations with control tokens escaped, and the names of the events to count.

        Raises:
            DataError: a message contains a control token, and `control_text` is ``error``.
        """
        # The conversations of a group share the messages of their prompt, which are escaped once.
        distinct = {id(message): message for messages in conversations for message in messages}
        if not self._control.find_tokens(list(distinct.values())):
            return [list(messages) for messages in conversations], []
        shielded = {key: self._message(message) for key, message in distinct.items()}
        events = [event for _, message_events in shielded.values() for event in message_events]
        return [[shielded[id(message)][0] for message in messages] for messages in conversations], events

    def unescape(self, text: str) -> str:
        """The text with its codes replaced by their control tokens, for messages to a person."""
        return self._control.unescape(text)

    def _message(self, message: Message) -> tuple[Message, list[str]]:
        if not self._control.find_tokens(message):
            return message, []
        if self._setting == "token":
            return message, self._events(_content(message))
        without_end = self._without_end(message)
        content = _content(without_end)
        events = self._events(content)
        if events and self._setting == "error":
            raise DataError(
                f"a message holds the control token {self._control.find_tokens(content)[0]!r}",
                fix="correct or remove the message, or read such tokens as plain text: data.control_text=text",
            )
        if without_end != message:
            events.append("duplicate_end_of_turn_removed")
        return cast("Message", {**self._control.escape(content), _ROLE: message["role"]}), events

    def context(self, context: Context) -> tuple[Context, list[str]]:
        """The context with control tokens escaped, and the names of the events to count.

        Raises:
            DataError: the context contains a control token, and `control_text` is ``error``.
        """
        events = [] if context == NO_CONTEXT else self._events(context.columns())
        if not events or self._setting == "token":
            return context, events
        if self._setting == "error":
            raise DataError(
                "the tools, documents or variables beside the messages hold the control token "
                f"{self._control.find_tokens(context.columns())[0]!r}",
                fix="correct or remove the row, or read such tokens as plain text: data.control_text=text",
            )
        coded = self._control.escape
        tools, documents = tuple(map(coded, context.tools)), tuple(map(coded, context.documents))
        return Context(tools, documents, coded(context.template_kwargs)), events

    def _events(self, value: object) -> list[str]:
        if not self._control.find_tokens(value):
            return []
        return [f"control_text_read_as_{'token' if self._setting == 'token' else 'text'}"]

    def _without_end(self, message: Message) -> Message:
        content = message.get("content")
        if message["role"] != ASSISTANT or not isinstance(content, str):
            return message
        return {**message, "content": self._written_ends.sub("", content)}


def _content(message: Message) -> dict[str, Any]:
    """The message without its role, which templates compare and which is therefore never escaped."""
    return {key: value for key, value in message.items() if key != _ROLE}
