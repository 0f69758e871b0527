"""Where the assistant's turns lie in a rendered conversation.

The conversation is rendered once, and its turns are learnt as they stand there: a template may write an earlier turn
otherwise than the last, as those do that drop earlier thoughts. A turn begins where its prompt ends, as at inference,
and ends with its end of turn. Both are found by rendering the beginning of the conversation, or a copy of it with one
message marked, and comparing.
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

# Private-use characters drawn anew in each process, as in `control_text`: no data holds the same ones.
_MARK = "".join(chr(0xF0000 + secrets.randbelow(0xFFFE)) for _ in range(8))

Render = Callable[[Sequence[Message], bool], str]
"""Text of messages, with or without the beginning of the next answer; raises DataError."""


@dataclass(frozen=True)
class Turn:
    """One assistant's turn.

    Attributes:
        prompt: what the model reads before it, the beginning of the conversation's text; None where that is the prompt.
        through: the beginning of the text up to its end of turn, this included.
    """

    prompt: str | None
    through: str


def find_trained_turns(
    messages: Sequence[Message], prompt: int, learn: Learn, text: str, ends: Sequence[str], render: Render
) -> tuple[tuple[Turn, ...], int] | None:
    """The assistant's turns to learn from, and how many were not found; None where all behind the prompt is one turn.

    Args:
        messages: a prompt with a response, whose last message is the assistant's.
        prompt: how many of them are the prompt's.
        learn: ``last`` takes the response's turns, ``all`` the prompt's too.
        text: of all messages.
        ends: the texts that end a turn.
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
    """Where an earlier turn's end of turn ends in the whole text."""
    limit = _content_start(messages, number + 1, text, render)
    if limit is None:
        return None
    end = max(
        (position + len(ending) for ending in ends if (position := text.rfind(ending, start, limit)) >= 0), default=None
    )
    if end is None:
        return None
    # Of several ends in a row the first is the turn's.
    while (shorter := _before_last_end(text[start:end], ends)) is not None:
        end = start + shorter
    return end


def _before_last_end(turn: str, ends: Sequence[str]) -> int | None:
    """Where a turn that ends twice ends first."""
    last = next(text for text in ends if turn.endswith(text))
    shorter = turn.removesuffix(last).rstrip()
    return len(shorter) if any(shorter.endswith(text) for text in ends) else None


def _turn_start(messages: Sequence[Message], number: int, text: str, render: Render) -> int | None:
    """Where the turn's prompt ends in the whole text."""
    if number == 0:
        return None
    prompt = _render_or_none(render, messages[:number], True)
    if prompt is None:
        return None
    if text.startswith(prompt):
        return len(prompt)
    # The template writes the beginning otherwise once more follows; only what stands behind the message before counts.
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
    """Where a message's content ends in the text."""
    marked_text = _render_or_none(render, _insert_mark(messages, number, behind=True), answer_next)
    if marked_text is None or _MARK not in marked_text:
        return None
    tail = marked_text.rpartition(_MARK)[2]
    return len(text) - len(tail) if text.endswith(tail) else None


def _content_start(messages: Sequence[Message], number: int, text: str, render: Render) -> int | None:
    """Where a message's content begins in the text."""
    marked_text = _render_or_none(render, _insert_mark(messages, number, behind=False), False)
    if marked_text is None or _MARK not in marked_text:
        return None
    head = marked_text.partition(_MARK)[0]
    return len(head) if text.startswith(head) else None


def _insert_mark(messages: Sequence[Message], number: int, *, behind: bool) -> list[Message]:
    """The messages with a mark before or behind one's content."""
    content: Any = messages[number].get("content")
    if isinstance(content, list):
        part = {"type": "text", "text": _MARK}
        content = [*content, part] if behind else [part, *content]
    else:
        content = f"{content or ''}{_MARK}" if behind else f"{_MARK}{content or ''}"
    marked_message: Message = {**messages[number], "content": content}
    return [*messages[:number], marked_message, *messages[number + 1 :]]


def _render_or_none(render: Render, messages: Sequence[Message], answer_next: bool) -> str | None:
    try:
        return render(messages, answer_next)
    except DataError:
        return None
