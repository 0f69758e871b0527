"""Messages of a conversation, and where its prompt ends and the response begins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from penchant.data.fields import Cell
from penchant.data.groups import Message, Text
from penchant.errors import DataError

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
KEYS = (("role", "content"), ("from", "value"))
Conversation = tuple[Message, ...]


def is_message(value: object) -> bool:
    """Whether a value has the fields of a message."""
    return isinstance(value, dict) and any(set(keys) <= value.keys() for keys in KEYS)


def message(cell: Cell) -> Message:
    """One message, ``role``/``content`` or ``from``/``value``, its role in the words of chat templates."""
    said, content = cell.need("role", "from"), cell.need("content", "value")
    role = ROLES.get(said.text().lower())
    if role is None:
        raise said.refusal(f"a role: {', '.join(ROLES)}")
    ledger, where = cell.row.ledger, cell.row.where
    if said.value in ("function_call", "observation", "function"):
        ledger.count(f"turns from '{said.value}' read as role '{role}'", where)
    for key, value in cell.value.items():
        if value is not None and not any(key in keys for keys in KEYS):
            ledger.count(f"field '{key}' of messages not used", where)
    return Message(role=role, content=content.text())


def messages(cell: Cell) -> Conversation:
    """A list of at least one message, or one message alone."""
    if isinstance(cell.value, dict):
        return (message(cell),)
    found = tuple(map(message, cell.items()))
    if not found:
        raise cell.refusal("at least one message")
    return found


def text_or_messages(cell: Cell) -> Text:
    return messages(cell) if isinstance(cell.value, list | dict) else cell.text()


def with_system(cell: Cell | None, conversation: Conversation) -> Conversation:
    """The conversation with a system column's text in front; an empty text adds nothing."""
    if cell is None or not cell.text():
        return conversation
    if conversation and conversation[0]["role"] == "system":
        raise cell.refusal("no system text where the conversation has a system message", "keep one of the two")
    return (Message(role="system", content=cell.text()), *conversation)


def joined(prompt: Text, cells: Sequence[Cell]) -> tuple[Text, tuple[Text, ...]]:
    """A prompt and its responses, all of one kind: all plain text, or all messages.

    Texts beside messages become a user's or an assistant's message. Responses that repeat the prompt (whole
    conversations beside a prompt column) lose it.

    Raises:
        DataError: text and messages among the responses, or a response that does not follow the prompt.
    """
    found = [text_or_messages(cell) for cell in cells]
    plain = [text for text in found if isinstance(text, str)]
    if len(plain) == len(found):
        if isinstance(prompt, str):
            return prompt, tuple(plain)
        return prompt, tuple((Message(role="assistant", content=text),) for text in plain)
    if plain:
        odd = next(cell for cell, text in zip(cells, found, strict=True) if isinstance(text, str))
        raise odd.refusal("messages, as the row's other responses are")
    conversations = [value for value in found if not isinstance(value, str)]
    if all(conversation[0]["role"] == "assistant" for conversation in conversations):
        _check_responses(conversations, cells)
        return (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt, tuple(conversations)
    start, responses = split_off(conversations, cells)
    repeated = start == prompt or prompt in [turn["content"] for turn in start if turn["role"] == "user"]
    if not repeated:
        raise cells[0].refusal(
            "an assistant's messages, or a whole conversation that holds the prompt",
            "leave the prompt column out where the conversations hold it: data.columns={unused: prompt}",
        )
    cells[0].row.ledger.count("prompt repeated in the responses, taken once", cells[0].row.where)
    return start, responses


def split_off(conversations: Sequence[Conversation], cells: Sequence[Cell]) -> tuple[Conversation, tuple[Text, ...]]:
    """The messages that whole conversations share, and what follows in each.

    The last message of each is always part of its response, so that equal conversations keep one.

    Raises:
        DataError: they share no message, or part ways at a message that is not the assistant's.
    """
    abreast = zip(*(conversation[:-1] for conversation in conversations), strict=False)
    shared = sum(1 for _ in takewhile(lambda turns: all(turn == turns[0] for turn in turns), abreast))
    if shared == 0:
        raise cells[-1].refusal(
            f"a conversation that starts with the same prompt as '{cells[0].column}'"
            if len(cells) > 1
            else "a message before the response",
            "add a prompt column, or correct the conversation",
        )
    responses = [conversation[shared:] for conversation in conversations]
    _check_responses(responses, cells)
    return conversations[0][:shared], tuple(responses)


def last_turn(conversation: Conversation, cell: Cell) -> tuple[Conversation, tuple[Text, ...]]:
    """A conversation's prompt and its last message, the one response."""
    if any(turn["role"] == "assistant" for turn in conversation[:-1]):
        cell.row.ledger.count(
            "the last assistant turn is the response, earlier ones are its prompt; data.learn=all learns them too",
            cell.row.where,
        )
    return split_off([conversation], [cell])


def _check_responses(responses: Sequence[Conversation], cells: Sequence[Cell]) -> None:
    for response, cell in zip(responses, cells, strict=True):
        for place, turn in (("begins", response[0]), ("ends", response[-1])):
            if turn["role"] != "assistant":
                raise DataError(
                    f"the response in column '{cell.column}' {place} with a message of role '{turn['role']}'; "
                    "expected the assistant's",
                    where=cell.row.where,
                    fix="conversations must differ only in the assistant's messages; correct or remove the row",
                )
