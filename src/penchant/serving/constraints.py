"""Constraints on an answer (tool calls, or JSON) by grammars of `llguidance`, and tool calls parsed from its text."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from penchant.engine.grammars import Grammars, grammar_library
from penchant.engine.sampling import Guide
from penchant.errors import ConfigError, DataError, PenchantError
from penchant.evaluation.tool_calls.calls import Argument, Call, Function
from penchant.evaluation.tool_calls.grammars import OPENS, Tags, json_calls
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.reading import read_json_calls
from penchant.serving.experts import Expert
from penchant.serving.requests import ChatRequest, JsonObjectFormat, JsonSchemaFormat, Tool, invalid
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


WHITESPACE = r"[ \n]{0,16}"
"""White space between tokens of JSON: enough for indentation, with a limit for models that would write only that."""


def answer_guide(chat: ChatRequest, expert: Expert) -> Callable[[], Guide] | None:
    """A function that makes the guide of an answer; None for an unconstrained answer.

    Where calling a tool is optional, a missing grammar is no error; everywhere else the request depends on it.

    Raises:
        Refusal: the request needs a constraint that cannot be enforced.
    """
    schema = _schema(chat)
    if schema is not None and chat.callable_tools:
        raise invalid(
            "response_format beside tools is not supported; leave one of the two out", param="response_format"
        )
    if schema is not None:
        return _require_guide(lambda: _json_guide(schema, expert), "response_format")
    if not chat.callable_tools:
        return None
    if chat.tool_choice == "auto" and chat.parallel_tool_calls:
        try:
            return _call_guide(chat, expert)
        except (PenchantError, ValueError):
            return None
    param = "parallel_tool_calls" if chat.tool_choice == "auto" else "tool_choice"
    return _require_guide(lambda: _call_guide(chat, expert), param)


def _schema(chat: ChatRequest) -> dict[str, Any] | None:
    """The JSON schema of the answer; None where it may be any text."""
    match chat.response_format:
        case JsonObjectFormat():
            return {"type": "object"}
        case JsonSchemaFormat() as response_format:
            return response_format.json_schema.json_schema
        case _:
            return None


def _require_guide(build: Callable[[], Callable[[], Guide]], param: str) -> Callable[[], Guide]:
    try:
        return build()
    except ConfigError as error:
        raise invalid(
            f"{param} cannot be honoured: this server runs without llguidance ({error.fix})",
            param=param,
            code="unsupported_parameter",
        ) from error
    except (PenchantError, ValueError) as error:
        raise invalid(f"{param} cannot be honoured: {str(error).partition(chr(10))[0]}", param=param) from error


def _json_guide(schema: dict[str, Any], expert: Expert) -> Callable[[], Guide]:
    options = {"whitespace_pattern": WHITESPACE}
    grammar = grammar_library().LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
    return _compile_grammar(expert.grammars, grammar)


def _call_guide(chat: ChatRequest, expert: Expert) -> Callable[[], Guide]:
    functions = tuple(offered_function(tool) for tool in chat.callable_tools)
    question = ToolQuestion("the request", "simple", (), functions, accepted=None)
    grammar = json_calls(
        question,
        Tags.from_tokenizer(expert.tokenizer),
        prose=chat.tool_choice == "auto",
        several=chat.parallel_tool_calls,
    )
    return _compile_grammar(expert.grammars, grammar)


def _compile_grammar(grammars: Grammars, grammar: str) -> Callable[[], Guide]:
    """A function that makes guides of a grammar, which is compiled here to keep the thread of the models free.

    Raises:
        ValueError: the grammar is not valid.
    """
    return grammars.guide(grammar).copy
