"""Readers of tool calls, and of the columns for the chat template (tools, documents, variables), in several forms."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from penchant.data.fields import Cell, Row
from penchant.data.messages import Context, Function, ToolCall
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
