"""How values are written, as rules of a grammar: Python's literals, and JSON.

One value has several spellings; of those a model may use the ones that `repr` and `json.dumps` write, either kind of
quotes, and a blank after a comma or a colon or none. Arithmetic, variables and numbers such as ``1_000`` or ``.5``,
which the readers take too, are left out: whatever they say can be said in these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

DEEPEST = 8
"""Lists in lists, and dicts, where a schema says nothing about them; Python's own parser gives up at a hundred."""

_NUMBERS = r"""
INTEGER: /-?(0|[1-9][0-9]*)/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/
COMMA: /, ?/
COLON: /: ?/
"""

# Backslashes are followed by whatever Python reads without an error, named characters excepted.
_PYTHON = r"""
ESCAPE: /\\([^xuUN\x00-\x1f]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U000[0-9a-fA-F]{5}|U0010[0-9a-fA-F]{4})/
STRING: "'" (/[^'\\\x00-\x1f]/ | ESCAPE)* "'" | "\"" (/[^"\\\x00-\x1f]/ | ESCAPE)* "\""
BOOLEAN: "True" | "False"
NOTHING: "None"
"""

# Of a string that holds one of the tags the reader would take it for the tag.
_JSON = r"""
QUOTED: "\"" (/[^"\\\x00-\x1f]/ | /\\(["\\\/bfnrt]|u[0-9a-fA-F]{4})/)* "\""
STRING: QUOTED & ~/(?s:.*)<\/?tool_call>(?s:.*)/
BOOLEAN: "true" | "false"
NOTHING: "null"
"""


@dataclass(frozen=True)
class Notation:
    """One way to write values.

    Attributes:
        rules: of the terminals STRING, INTEGER, NUMBER, BOOLEAN, NOTHING, COMMA and COLON, and of ``anything``.
        spellings: of one value, all that may be written.
    """

    rules: str
    spellings: Callable[[Any], Sequence[str]]


def quoted(text: str) -> str:
    """The text as a literal in a grammar."""
    return json.dumps(text)


def one_of(texts: Sequence[str]) -> str:
    """A choice of literals."""
    return "(" + " | ".join(map(quoted, dict.fromkeys(texts))) + ")"


def _anything() -> str:
    """Values of any type, to a depth at which nobody means them."""
    lines = ["anything: value_0", f"value_{DEEPEST}: simple", "simple: STRING | NUMBER | BOOLEAN | NOTHING"]
    for depth in range(DEEPEST):
        inner = f"value_{depth + 1}"
        lines += [
            f"value_{depth}: simple | list_{depth} | dict_{depth}",
            f'list_{depth}: "[" ({inner} (COMMA {inner})*)? "]"',
            f'dict_{depth}: "{{" (STRING COLON {inner} (COMMA STRING COLON {inner})*)? "}}"',
        ]
    return "\n".join([*lines, "any_list: list_0", "any_dict: dict_0"])


PYTHON = Notation(_NUMBERS + _PYTHON + _anything(), lambda value: (repr(value), *_other_quotes(value)))
JSON = Notation(
    _NUMBERS + _JSON + _anything(), lambda value: (json.dumps(value, ensure_ascii=False), json.dumps(value))
)


def _other_quotes(value: Any) -> Sequence[str]:
    """A string's spelling in double quotes, whose escapes in JSON mean the same in Python."""
    return (json.dumps(value, ensure_ascii=False),) if isinstance(value, str) else ()
