"""Escaping of control tokens inside the messages of a conversation before the chat template renders it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from penchant.data.control_text import ControlText
from penchant.data.messages import ASSISTANT, NO_CONTEXT, Context, Message
from penchant.data.rendering import Rendering
from penchant.data.template_tokens import TemplateTokens
from penchant.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
