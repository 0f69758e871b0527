"""Readers of a conversation's messages, and of the boundary between its prompt and its response."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, cast

from penchant.data.calls import calls_in_turn, tool_call, tool_calls
from penchant.data.fields import Cell
from penchant.data.messages import ASSISTANT, REASONING, Message, Part, Text, content_of, same_turn
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
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
SYSTEM = ("system", "developer")
CALL_TURNS = ("function_call", "tool_call")
"""Roles of turns whose content is a tool call."""

KEYS = (("role", "content"), ("from", "value"))
READ_FIELDS = {"role", "from", "content", "value", "tool_calls", "function_call", "name", "tool_call_id", *REASONING}
Conversation = tuple[Message, ...]


def is_message(value: object) -> bool:
    """Whether a value has the fields of a message."""
    if not isinstance(value, dict):
        return False
    return any(set(keys) <= value.keys() for keys in KEYS) or {"role", "tool_calls"} <= value.keys()


def message(cell: Cell) -> Message:
    """One message with ``role``/``content`` or ``from``/``value``, its role named as chat templates name it.

    Tool calls, reasoning and other fields are those of the data; null fields are left out, as templates expect.
    """
    role_cell = cell.need("role", "from")
    role = ROLES.get(role_cell.text().lower())
    if role is None:
        raise role_cell.refusal(f"a role: {', '.join(ROLES)}")
    read_log, where = cell.row.read_log, cell.row.where
    fields: dict[str, Any] = {"role": role}
    calls = _calls_beside_content(cell)
    if role_cell.value in CALL_TURNS:
        if (turn := calls_in_turn(cell.need("content", "value"))) is None:
            read_log.count(f"turns from '{role_cell.value}' that are not JSON, read as text of role '{role}'", where)
        else:
            fields["content"], calls = turn
            read_log.count(f"turns from '{role_cell.value}' read as tool calls", where)
    elif role_cell.value != role and role == "tool":
        read_log.count(f"turns from '{role_cell.value}' read as role '{role}'", where)
    if "content" not in fields:
        content = cell.find("content", "value")
        if content is None and not calls and not _has_thoughts(cell):
            raise cell.refusal("an object with content or value")
        fields |= {} if content is None else {"content": _content(content, role)}
    return cast("Message", {**fields, **({"tool_calls": calls} if calls else {}), **_other_fields(cell)})


def _has_thoughts(cell: Cell) -> bool:
    return any(isinstance(cell.value.get(name), str) for name in REASONING)


def _calls_beside_content(cell: Cell) -> list[Any]:
    """The calls in a message's ``tool_calls``, or in its ``function_call`` (the older form of OpenAI)."""
    call_list, single_call = cell.find("tool_calls"), cell.find("function_call")
    if single_call is not None and call_list is None:
        cell.row.read_log.count("field 'function_call' of messages read as tool calls", cell.row.where)
        return [tool_call(single_call)]
    return [] if call_list is None else [*tool_calls(call_list)]


def _content(cell: Cell, role: str) -> str | list[Part]:
    if isinstance(cell.value, str):
        return cell.text()
    is_parts = isinstance(cell.value, list) and all(
        isinstance(part, dict) and isinstance(part.get("type"), str) for part in cell.value
    )
    if is_parts:
        return [_part(part) for part in cell.items()]
    if role == "tool" and isinstance(cell.value, dict | list | int | float):
        cell.row.read_log.count("tool results that are not text, written as JSON", cell.row.where)
        return json.dumps(cell.value, ensure_ascii=False)
    raise cell.refusal('text, or parts of type text: [{"type": "text", "text": ...}]')


def _part(cell: Cell) -> Part:
    kind = cell.need("type")
    if kind.value not in ("text", "input_text", "output_text"):
        raise kind.refusal("parts of type text; images, sound and files are not read")
    return Part(type="text", text=cell.need("text").text())


def _other_fields(cell: Cell) -> Mapping[str, Any]:
    """A message's fields besides role, content and calls; unknown fields are counted."""
    fields = {}
    for key, value in cell.value.items():
        if value is None or key in ("role", "from", "content", "value", "tool_calls", "function_call"):
            continue
        if key not in READ_FIELDS:
            cell.row.read_log.count(f"field '{key}' of messages kept for the chat template", cell.row.where)
        fields[key] = Cell(value, f"{cell.column}.{key}", cell.row).text() if isinstance(value, str) else value
    return fields


def messages(cell: Cell) -> Conversation:
    """The messages of a list, or one message alone; a turn that is a call joins the assistant's turn before it."""
    if isinstance(cell.value, dict):
        return (message(cell),)
    turns: list[Message] = []
    open_call = False
    for item in cell.items():
        turn = message(item)
        is_call = "tool_calls" in turn and item.need("role", "from").value in CALL_TURNS
        previous = turns[-1] if turns else None
        if is_call and previous and previous["role"] == ASSISTANT and (open_call or "tool_calls" not in previous):
            cell.row.read_log.count("calls joined to the assistant's turn before them", cell.row.where)
            turns[-1] = _join_turns(previous, turn)
        else:
            turns.append(turn)
        open_call = is_call
    if not turns:
        raise cell.refusal("at least one message")
    return tuple(turns)


def _join_turns(turn: Message, call: Message) -> Message:
    content = "\n".join(filter(None, (content_of(turn), content_of(call))))
    calls = [*turn.get("tool_calls", []), *call.get("tool_calls", [])]
    return {**turn, "content": content, "tool_calls": calls}


def text_or_messages(cell: Cell) -> Text:
    """Plain text, or the messages of a list or object."""
    return messages(cell) if isinstance(cell.value, list | dict) else cell.text()


def join_prompt_and_responses(prompt: Text, cells: Sequence[Cell]) -> tuple[Text, tuple[Text, ...]]:
    """A prompt and its responses, all as plain text or all as messages.

    A plain prompt or plain responses beside messages become a user's or an assistant's message. Where the responses are
    whole conversations that repeat the prompt, the prompt is taken out of them.

    Raises:
        DataError: the responses are partly text and partly messages, or one of them does not follow the prompt.
    """
    responses = [text_or_messages(cell) for cell in cells]
    plain = [text for text in responses if isinstance(text, str)]
    if len(plain) == len(responses):
        if isinstance(prompt, str):
            return prompt, tuple(plain)
        return prompt, tuple((Message(role="assistant", content=text),) for text in plain)
    if plain:
        text_cell = next(cell for cell, text in zip(cells, responses, strict=True) if isinstance(text, str))
        raise text_cell.refusal("messages, as the row's other responses are")
    conversations = [value for value in responses if not isinstance(value, str)]
    if all(conversation[0]["role"] == "assistant" for conversation in conversations):
        _check_responses(conversations, cells)
        return (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt, tuple(conversations)
    shared_prompt, endings = split_shared_prompt(conversations, cells)
    beyond_system = shared_prompt[1:] if shared_prompt[0]["role"] in SYSTEM else shared_prompt
    repeated = prompt in (shared_prompt, beyond_system) or prompt in [
        content_of(t) for t in shared_prompt if t["role"] == "user"
    ]
    if not repeated:
        raise cells[0].refusal(
            "an assistant's messages, or a whole conversation that holds the prompt",
            "leave the prompt column out where the conversations hold it: data.columns={unused: prompt}",
        )
    cells[0].row.read_log.count("prompt repeated in the responses, taken once", cells[0].row.where)
    return shared_prompt, endings


def split_shared_prompt(
    conversations: Sequence[Conversation], cells: Sequence[Cell]
) -> tuple[Conversation, tuple[Text, ...]]:
    """The prompt that whole conversations share, and the response of each.

    The last message of a conversation is always part of its response, so that equal conversations have one.

    Raises:
        DataError: the conversations share no message, or first differ at a message that is not the assistant's.
    """
    columns_of_turns = zip(*(conversation[:-1] for conversation in conversations), strict=False)
    shared = sum(1 for _ in takewhile(same_turn, columns_of_turns))
    # Where the results of one tool call differ, the call is the response's first turn.
    while shared > 1 and all(conversation[shared]["role"] == "tool" for conversation in conversations):
        shared -= 1
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
        cell.row.read_log.count(
            "earlier assistant turns are part of the prompt, the last one is the response",
            cell.row.where,
        )
    return split_shared_prompt([conversation], [cell])


def _check_responses(responses: Sequence[Conversation], cells: Sequence[Cell]) -> None:
    for response, cell in zip(responses, cells, strict=True):
        for verb, turn in (("begins", response[0]), ("ends", response[-1])):
            if turn["role"] != "assistant":
                raise DataError(
                    f"the response in column '{cell.column}' {verb} with a message of role '{turn['role']}'; "
                    "expected the assistant's",
                    where=cell.row.where,
                    fix="conversations must differ only in the assistant's messages; correct or remove the row",
                )
