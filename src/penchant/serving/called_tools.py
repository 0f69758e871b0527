"""Tool calls in a model's answer: parsed from its text, and held back from the streamed text."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from penchant.errors import DataError
from penchant.evaluation.tool_calls.calls import Argument, Call, Function
from penchant.evaluation.tool_calls.grammars import OPENS
from penchant.evaluation.tool_calls.reading import read_json_calls
from penchant.serving.requests import Tool
from penchant.serving.texts import partial_match_length

THOUGHT_ENDS = "</think>"
HELD_STARTS = ("[", "{", "`", "<")
"""Beginnings of an answer that may be a tool call as a whole."""


def offered_function(tool: Tool) -> Function:
    """A tool as the function that grammars and parsers need; an argument without a single type may be any value.

    Raises:
        DataError: the tool's parameters are not the JSON schema of an object.
    """
    parameters, where = tool.function.parameters or {}, f"the tool '{tool.function.name}'"
    properties = parameters.get("properties") or {}
    if not isinstance(properties, dict) or not all(isinstance(schema, dict) for schema in properties.values()):
        raise DataError("its properties are not schemas by name", where=where, fix="describe them in JSON Schema")
    typed = {name: {"type": "any", **schema} for name, schema in properties.items()}
    required = parameters.get("required") or []
    return Function.read({"name": tool.function.name, "parameters": {"properties": typed, "required": required}}, where)


class AnswerText:
    """The text of an answer that may call tools.

    Text that may be a part of a call is held back until the end of the answer.

    Args:
        tools: tools whose calls are accepted.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        names = [tool.function.name for tool in tools]
        self._functions = [Function(name, dict[str, Argument](), (), {}) for name in names]
        self._text, self._sent_length = "", 0

    def add(self, text: str) -> str:
        """Add text to the answer; the result is the text that can be sent now."""
        self._text += text
        if not self._functions:
            self._sent_length = len(self._text)
            return text
        start = self._text.lstrip()
        if not start or start.startswith(HELD_STARTS):
            return ""
        marks = [self._text.find(mark) for mark in (OPENS, THOUGHT_ENDS)]
        partial_length = max(partial_match_length(self._text, mark) for mark in (OPENS, THOUGHT_ENDS))
        end = min([mark for mark in marks if mark >= 0] or [len(self._text) - partial_length])
        new = self._text[self._sent_length : end]
        self._sent_length = max(self._sent_length, end)
        return new

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """The remaining text to send, and the calls in the protocol's form, at the end of the answer."""
        calls = self._calls()
        end = self._first_call() if calls else len(self._text)
        return self._text[self._sent_length : end], [as_tool_call(call) for call in calls]

    def _calls(self) -> list[Call]:
        """The answer's calls; empty where one calls an unknown function, so that the answer counts as text."""
        calls = (read_json_calls(self._text, self._functions) if self._functions else None) or []
        names = {function.name for function in self._functions}
        return calls if all(call.name in names for call in calls) else []

    def _first_call(self) -> int:
        """Index at which the text before the calls ends."""
        tag, reasoning_end = self._text.find(OPENS), self._text.find(THOUGHT_ENDS)
        return tag if tag >= 0 else reasoning_end + len(THOUGHT_ENDS) if reasoning_end >= 0 else 0


def as_tool_call(call: Call) -> dict[str, Any]:
    """A call in the protocol's form, with a new id."""
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
