"""Positions of the assistant's turns in a rendered conversation.

The conversation is rendered once, and the model is trained on its turns as they are written there: a template may write
an earlier turn differently from the last one, for example without its reasoning. A turn begins where its prompt ends,
as at inference, and ends with its end-of-turn token. Both positions come from comparing the text with a rendering of
the beginning of the conversation, or of a copy in which one message contains a mark.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from penchant.data.groups import Message
from penchant.data.prefixes import common_length
from penchant.data.rendering import Learn
from penchant.errors import DataError

# Private-use characters that are random in each process, as in `control_text`: no data contains the same ones.
_MARK = "".join(chr(0xF0000 + secrets.randbelow(0xFFFE)) for _ in range(8))

Render = Callable[[Sequence[Message], bool], str]
"""Function from messages, and whether the beginning of the next answer follows, to their text; raises DataError."""


@dataclass(frozen=True)
class Turn:
    """One assistant's turn.

    Attributes:
        prompt: the conversation's text before the turn; None where that is the group's prompt.
        through: the conversation's text up to and including the turn's end-of-turn token.
    """

    prompt: str | None
    through: str


def find_trained_turns(
    messages: Sequence[Message], prompt: int, learn: Learn, text: str, ends: Sequence[str], render: Render
) -> tuple[tuple[Turn, ...], int] | None:
    """The assistant's turns to train on, and the number of turns without a known position.

    The result is None where the whole response is one turn.

    Args:
        messages: a prompt with a response, whose last message is the assistant's.
        prompt: number of messages in the prompt.
        learn: ``last`` takes the response's turns, ``all`` the prompt's turns too.
        text: rendering of all messages.
        ends: texts of the tokens that end a turn.
        render: renders a part of the messages.
    """
    start_index = 0 if learn == "all" else prompt
    turn_numbers = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= start_index]
    if turn_numbers == [len(messages) - 1] == [prompt]:
        return None
    turns: list[Turn] = []
    for number in turn_numbers:
        start = None if number == prompt else _turn_start(messages, number, text, render)
        if start is None and number != prompt:
            continue
        through = text
        if number < len(messages) - 1:
            end = _turn_end(messages, number, start or 0, text, ends, render)
            if end is None:
                continue
            through = text[:end]
        turns.append(Turn(None if start is None else text[:start], through))
    return tuple(turns), len(turn_numbers) - len(turns)


def _turn_end(
    messages: Sequence[Message], number: int, start: int, text: str, ends: Sequence[str], render: Render
) -> int | None:
    """Index in the whole text just after the end-of-turn token of an earlier turn."""
    limit = _content_start(messages, number + 1, text, render)
    if limit is None:
        return None
    end = max(
        (position + len(ending) for ending in ends if (position := text.rfind(ending, start, limit)) >= 0), default=None
    )
    if end is None:
        return None
    # Of several end-of-turn tokens in a row the first one belongs to the turn.
    while (shorter := _before_last_end(text[start:end], ends)) is not None:
        end = start + shorter
    return end


def _before_last_end(turn: str, ends: Sequence[str]) -> int | None:
    """Length of the turn without its last end-of-turn token; None where it has only one."""
    last = next(text for text in ends if turn.endswith(text))
    shorter = turn.removesuffix(last).rstrip()
    return len(shorter) if any(shorter.endswith(text) for text in ends) else None


def _turn_start(messages: Sequence[Message], number: int, text: str, render: Render) -> int | None:
    """Index in the whole text where the turn's prompt ends."""
    if number == 0:
        return None
    prompt = _render_or_none(render, messages[:number], True)
    if prompt is None:
        return None
    if text.startswith(prompt):
        return len(prompt)
    # The template writes earlier messages differently once more messages follow, so only the text after the previous
    # message is compared.
    length, header_start = len(prompt), _content_end(messages[:number], number - 1, prompt, render, answer_next=True)
    message_end = _content_end(messages, number - 1, text, render, answer_next=False)
    if header_start is None or message_end is None:
        return None
    header = prompt[header_start:length]
    shared = common_length(header, text[message_end:])
    return message_end + shared if shared or not header else None


def _content_end(
    messages: Sequence[Message], number: int, text: str, render: Render, *, answer_next: bool
) -> int | None:
    """Index in the text where a message's content ends."""
    marked_text = _render_or_none(render, _insert_mark(messages, number, behind=True), answer_next)
    if marked_text is None or _MARK not in marked_text:
        return None
    tail = marked_text.rpartition(_MARK)[2]
    return len(text) - len(tail) if text.endswith(tail) else None


def _content_start(messages: Sequence[Message], number: int, text: str, render: Render) -> int | None:
    """Index in the text where a message's content begins."""
    marked_text = _render_or_none(render, _insert_mark(messages, number, behind=False), False)
    if marked_text is None or _MARK not in marked_text:
        return None
    head = marked_text.partition(_MARK)[0]
    return len(head) if text.startswith(head) else None


def _insert_mark(messages: Sequence[Message], number: int, *, behind: bool) -> list[Message]:
    """The messages with a mark before or after the content of one message."""
    content: Any = messages[number].get("content")
    if isinstance(content, list):
        part = {"type": "text", "text": _MARK}
        content = [*content, part] if behind else [part, *content]
    else:
        content = f"{content or ''}{_MARK}" if behind else f"{_MARK}{content or ''}"
    marked_message: Message = {**messages[number], "content": content}
    return [*messages[:number], marked_message, *messages[number + 1 :]]


def _render_or_none(render: Render, messages: Sequence[Message], answer_next: bool) -> str | None:
    """The messages' text; None where the template refuses them."""
    try:
        return render(messages, answer_next)
    except DataError:
        return None
