"""Grammar rules for values in two notations: Python literals and JSON.

A value has several spellings. The grammar allows those of `repr` and `json.dumps`, both kinds of quotes, and a comma or
colon with or without a space after it. The readers also accept arithmetic, variables and numbers such as ``1_000`` or
``.5``; the grammar leaves these out because they express no value that the allowed spellings cannot.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 8
"""Maximal nesting of lists and dicts whose schema is unknown; Python's parser fails at a depth of a hundred."""

_NUMBERS = r"""
INTEGER: /-?(0|[1-9][0-9]*)/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/
COMMA: /, ?/
COLON: /: ?/
"""

# A backslash may be followed by everything that Python reads without an error, except named characters (\N{...}).
_PYTHON = r"""
ESCAPE: /\\([^xuUN\x00-\x1f]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U000[0-9a-fA-F]{5}|U0010[0-9a-fA-F]{4})/
STRING: "'" (/[^'\\\x00-\x1f]/ | ESCAPE)* "'" | "\"" (/[^"\\\x00-\x1f]/ | ESCAPE)* "\""
BOOLEAN: "True" | "False"
NOTHING: "None"
"""

# The reader would mistake a tag inside a string for the tag of a call, so strings may hold none.
_JSON = r"""
QUOTED: "\"" (/[^"\\\x00-\x1f]/ | /\\(["\\\/bfnrt]|u[0-9a-fA-F]{4})/)* "\""
STRING: QUOTED & ~/(?s:.*)<\/?tool_call>(?s:.*)/
BOOLEAN: "true" | "false"
NOTHING: "null"
"""


@dataclass(frozen=True)
class Notation:
    """A notation for values.

    Attributes:
        rules: the grammar rules of STRING, INTEGER, NUMBER, BOOLEAN, NOTHING, COMMA, COLON and ``anything``.
        spellings: returns all allowed spellings of a value.
    """

    rules: str
    spellings: Callable[[Any], Sequence[str]]


def quote(text: str) -> str:
    """The text as a literal in a grammar."""
    return json.dumps(text)


def one_of(texts: Sequence[str]) -> str:
    """A grammar expression that matches any one of the texts."""
    return "(" + " | ".join(map(quote, dict.fromkeys(texts))) + ")"


def _any_value_rules() -> str:
    """The rules of values of any type, nested up to `MAX_DEPTH` levels."""
    lines = ["anything: value_0", f"value_{MAX_DEPTH}: simple", "simple: STRING | NUMBER | BOOLEAN | NOTHING"]
    for depth in range(MAX_DEPTH):
        inner = f"value_{depth + 1}"
        lines += [
            f"value_{depth}: simple | list_{depth} | dict_{depth}",
            f'list_{depth}: "[" ({inner} (COMMA {inner})*)? "]"',
            f'dict_{depth}: "{{" (STRING COLON {inner} (COMMA STRING COLON {inner})*)? "}}"',
        ]
    return "\n".join([*lines, "any_list: list_0", "any_dict: dict_0"])


PYTHON = Notation(_NUMBERS + _PYTHON + _any_value_rules(), lambda value: (repr(value), *_other_quotes(value)))
JSON = Notation(
    _NUMBERS + _JSON + _any_value_rules(), lambda value: (json.dumps(value, ensure_ascii=False), json.dumps(value))
)


def _other_quotes(value: Any) -> Sequence[str]:
    """A string in double quotes: its JSON escapes have the same meaning in Python. Empty for other values."""
    return (json.dumps(value, ensure_ascii=False),) if isinstance(value, str) else ()
