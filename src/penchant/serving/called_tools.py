"""Tool calls in a model's answer: read out of it, and kept out of its text while it is streamed."""

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
from penchant.serving.texts import begun_length

THOUGHT_ENDS = "</think>"
HELD_STARTS = ("[", "{", "`", "<")
"""What begins an answer that may be a call as a whole."""


def offered_function(tool: Tool) -> Function:
    """A tool as grammars and readers take it; an argument whose schema has no one type may be anything.

    Raises:
        DataError: its parameters are no JSON schema of an object.
    """
    parameters, where = tool.function.parameters or {}, f"the tool '{tool.function.name}'"
    properties = parameters.get("properties") or {}
    if not isinstance(properties, dict) or not all(isinstance(schema, dict) for schema in properties.values()):
        raise DataError("its properties are no schemas by name", where=where, fix="describe them in JSON Schema")
    typed = {name: {"type": "any", **schema} for name, schema in properties.items()}
    required = parameters.get("required") or []
    return Function.read({"name": tool.function.name, "parameters": {"properties": typed, "required": required}}, where)


class AnswerText:
    """An answer's text on its way out, in which tools may be called.

    Text that may turn out to be a call is held back until the answer's end.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        names = [tool.function.name for tool in tools]
        self._functions = [Function(name, dict[str, Argument](), (), {}) for name in names]
        self._text, self._sent = "", 0

    def add(self, text: str) -> str:
        """What of the text can be sent now."""
        self._text += text
        if not self._functions:
            self._sent = len(self._text)
            return text
        start = self._text.lstrip()
        if not start or start.startswith(HELD_STARTS):
            return ""
        marks = [self._text.find(mark) for mark in (OPENS, THOUGHT_ENDS)]
        begun = max(begun_length(self._text, mark) for mark in (OPENS, THOUGHT_ENDS))
        end = min([mark for mark in marks if mark >= 0] or [len(self._text) - begun])
        new = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return new

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """The text that is left to send, and the calls by the protocol, at the answer's end."""
        calls = self._calls()
        end = self._first_call() if calls else len(self._text)
        return self._text[self._sent : end], [as_tool_call(call) for call in calls]

    def _calls(self) -> list[Call]:
        """None where the answer calls something that is not on offer: then it is text."""
        calls = (read_json_calls(self._text, self._functions) if self._functions else None) or []
        names = {function.name for function in self._functions}
        return calls if all(call.name in names for call in calls) else []

    def _first_call(self) -> int:
        """Where the text before the calls ends."""
        tag, thought = self._text.find(OPENS), self._text.find(THOUGHT_ENDS)
        return tag if tag >= 0 else thought + len(THOUGHT_ENDS) if thought >= 0 else 0


def as_tool_call(call: Call) -> dict[str, Any]:
    """A call by the protocol, under an id of its own."""
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
