"""Readers of a conversation: its messages, tool calls and template columns, and where its response begins."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, cast

from penchant.data.fields import Cell, Row
from penchant.data.messages import (
    ASSISTANT,
    REASONING,
    Context,
    Function,
    Message,
    Part,
    Text,
    ToolCall,
    content_of,
    same_turn,
)
from penchant.data.rendering import RESERVED
from penchant.errors import DataError

TEMPLATE_COLUMNS = ("system", "tools", "documents", "chat_template_kwargs")
"""Columns that go to the chat template; a row of any format may have them."""

THOUGHT_ENDS = "</think>"


def tool_calls(cell: Cell) -> list[ToolCall]:
    """The tool calls of a message, from a list or from JSON text of a list."""
    return [tool_call(item) for item in _parse_json(cell, "a list of tool calls").items()]


def tool_call(cell: Cell) -> ToolCall:
    """One tool call in OpenAI's form, from ``{"function": {"name", "arguments"}}`` or ``{"name", "arguments"}``.

    Raises:
        DataError: the call has no name, or its arguments are neither an object nor JSON text of one.
    """
    cell = _parse_json(cell, "a tool call")
    if not isinstance(cell.value, dict):
        raise cell.refusal('a tool call, as in {"function": {"name": ..., "arguments": {...}}}')
    inner = cell.need("function") if isinstance(cell.value.get("function"), dict) else cell
    function = Function(name=inner.need("name").text(), arguments=_arguments(inner.find("arguments", "parameters")))
    read_fields = ("name", "arguments", "parameters", "function", "type")
    fields = {key: value for key, value in cell.value.items() if key not in read_fields and value is not None}
    return cast("ToolCall", {**fields, "type": "function", "function": function})


def _arguments(cell: Cell | None) -> dict[str, Any]:
    if cell is None or cell.value == "":
        return {}
    value = cell.value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = cell.value
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise cell.refusal("the call's arguments: an object, or JSON text of one")
    return value


def calls_in_turn(cell: Cell) -> tuple[str, list[ToolCall]] | None:
    """Text and calls of a turn whose content is a call (LLaMA-Factory's function_call, ms-swift's tool_call).

    The text is the reasoning in front of the calls. The result is None where the content is not JSON.
    """
    if not isinstance(cell.value, str):
        return "", _call_or_calls(cell)
    reasoning, end, call_text = cell.value.rpartition(THOUGHT_ENDS)
    try:
        value = json.loads(call_text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict | list):
        return None
    return reasoning + end, _call_or_calls(Cell(value, cell.column, cell.row))


def _call_or_calls(cell: Cell) -> list[ToolCall]:
    return [tool_call(cell)] if isinstance(cell.value, dict) else [tool_call(item) for item in cell.items()]


def template_context(row: Row) -> Context:
    """The row's tools, documents and template variables, empty where it has none."""
    tools, documents = row.find("tools"), row.find("documents")
    variables = row.find("chat_template_kwargs")
    return Context(
        () if tools is None else tuple(_tool(item) for item in _object_cells(tools)),
        ()
        if documents is None
        else tuple(_parse_object(item, "a document: an object") for item in _object_cells(documents)),
        {} if variables is None else _variables(variables),
    )


def _object_cells(cell: Cell) -> list[Cell]:
    if isinstance(cell.value, str) and not cell.value.strip():
        return []
    parsed = _parse_json(cell, "a list of objects, or JSON text of one")
    return [] if parsed.value in (None, {}) else [parsed] if isinstance(parsed.value, dict) else parsed.items()


def _tool(cell: Cell) -> Mapping[str, Any]:
    """A tool in OpenAI's form; a function's schema without a ``function`` field is wrapped in one."""
    tool = dict(_parse_object(cell, "a tool: an object with a name"))
    if isinstance(tool.get("function"), dict):
        return {"type": "function", **tool} if "type" not in tool else tool
    if not isinstance(tool.get("name"), str):
        if "type" in tool:  # A tool that a server provides, such as a web search: templates read its type.
            return tool
        raise _refusal(cell, 'a tool, as in {"type": "function", "function": {"name": ..., "parameters": {...}}}')
    if tool.get("type") == "function":
        del tool["type"]
    return {"type": "function", "function": tool}


def _variables(cell: Cell) -> Mapping[str, Any]:
    if isinstance(cell.value, str) and not cell.value.strip():
        return {}
    variables = _parse_object(cell, "an object of variables for the chat template")
    for name in variables:
        if name in RESERVED:
            raise _refusal(cell, f"no variable '{name}', which {RESERVED[name]}")
    return variables


def _parse_object(cell: Cell, expected: str) -> Mapping[str, Any]:
    value = _parse_json(cell, expected).value
    if not isinstance(value, dict):
        raise _refusal(cell, expected)
    return value


def _parse_json(cell: Cell, expected: str) -> Cell:
    """The cell with JSON text parsed; other values unchanged."""
    if not isinstance(cell.value, str):
        return cell
    try:
        return Cell(json.loads(cell.text()), cell.column, cell.row)
    except (ValueError, RecursionError) as error:
        raise (_refusal(cell, expected) if cell.column in TEMPLATE_COLUMNS else cell.refusal(expected)) from error


def _refusal(cell: Cell, expected: str) -> DataError:
    column = re.split(r"[.\[]", cell.column)[0]
    return cell.refusal(expected, f"correct it, or leave the column out: data.columns={{unused: {column}}}")


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
