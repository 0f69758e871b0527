"""Constraints on an answer (calls of the offered tools, or JSON) by grammars, where `llguidance` is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from penchant.engine.grammars import Grammars, grammar_library
from penchant.engine.sampling import Guide
from penchant.errors import ConfigError, PenchantError
from penchant.evaluation.tool_calls.grammars import Tags, json_calls
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.serving.called_tools import offered_function
from penchant.serving.experts import Expert
from penchant.serving.refusals import invalid
from penchant.serving.requests import ChatRequest, JsonObjectFormat, JsonSchemaFormat

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
