"""What is done with control tokens inside the messages of a conversation before a template renders it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penchant.data.control_text import ControlText
from penchant.data.messages import NO_CONTEXT, Context, Message
from penchant.data.rendering import Rendering
from penchant.data.special_tokens import SpecialTokens
from penchant.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLE = "role"


def shielded(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> list[Any]:
    """The messages as the template gets them: control tokens in them as codes, where they are to be text.

    An end of turn that is written out behind an assistant's message is the template's to write: it is left out.

    Raises:
        DataError: a message holds control text, and `control_text` is ``error``.
    """
    if rendering.control_text == "token":
        return list(messages)
    control = ControlText.of(tokenizer)
    if not control.present(messages):
        return list(messages)
    ready = [_without_end(message, tokenizer) for message in messages]
    present = control.present(_contents(ready))
    if present and rendering.control_text == "error":
        raise DataError(
            f"a message holds the control token {present[0]!r}",
            fix="correct or remove the message, or read such tokens as plain text: data.control_text=text",
        )
    contents = zip(_contents(ready), ready, strict=True)
    return [{**control.coded(content), _ROLE: message["role"]} for content, message in contents]


def shielded_context(context: Context, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> Context:
    """The tools, documents and variables as the template gets them.

    Raises:
        DataError: they hold control text, and `control_text` is ``error``.
    """
    control = ControlText.of(tokenizer)
    present = [] if rendering.control_text == "token" else control.present(context.columns())
    if not present:
        return context
    if rendering.control_text == "error":
        raise DataError(
            f"the tools, documents or variables beside the messages hold the control token {present[0]!r}",
            fix="correct or remove the row, or read such tokens as plain text: data.control_text=text",
        )
    tools, documents = (tuple(map(control.coded, each)) for each in (context.tools, context.documents))
    return Context(tools, documents, control.coded(context.template_kwargs))


def message_events(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering,
    context: Context = NO_CONTEXT,
) -> list[str]:
    """What is to be counted of the control tokens in messages and beside them, by name."""
    present = ControlText.of(tokenizer).present
    if present(context.columns()):
        return [f"control_text_read_as_{'token' if rendering.control_text == 'token' else 'text'}"]
    if not present(messages):
        return []
    if rendering.control_text == "token":
        return ["control_text_read_as_token"] if present(_contents(messages)) else []
    ready = [_without_end(message, tokenizer) for message in messages]
    events = ["control_text_read_as_text"] if present(_contents(ready)) else []
    return events + (["duplicate_end_of_turn_removed"] if ready != list(messages) else [])


def _contents(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages without their roles, which templates compare."""
    return [{key: value for key, value in message.items() if key != _ROLE} for message in messages]


def _without_end(message: Message, tokenizer: PreTrainedTokenizerBase) -> Message:
    content, end = message.get("content"), SpecialTokens.of(tokenizer).turn_end
    if message["role"] != "assistant" or not isinstance(content, str) or end is None:
        return message
    written = re.escape(str(tokenizer.convert_ids_to_tokens(end)))
    return {**message, "content": re.sub(rf"({written}\s*)+$", "", content)}
