"""Grammars of constrained answers: calls of the functions on offer, or no call.

The style's reader reads every text of a grammar: as calls of the functions on offer that pass all required arguments
and no argument twice, with values of the types that `matching` expects; or as no call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penchant.errors import DataError
from penchant.evaluation.tool_calls.calls import Call, Function, type_name
from penchant.evaluation.tool_calls.matching import PYTHON_TYPES
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.reading import native_name, read_calls

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


MAX_ARGUMENTS = 64
"""Maximal arguments of a function: the grammar keeps a bit per written argument in a number of 64 bits."""

# Texts that the reader cannot take for calls: words without an opening parenthesis, or two adjacent words, which begin
# no call expression whatever follows. JSON calls, which this reader does not read, are not allowed either.
PROSE = r"[^\W\d_][^(]*|[^\W\d_]+[ ,]+[^\W\d_](?s:.*)"

# JSON begins with a bracket or a brace, and the reader strips backticks around it.
SPEECH = r"[^\s\[{`](?s:.*)"

OPENS, CLOSES = "<tool_call>", "</tool_call>"


def python_calls(question: ToolQuestion, *, prose: bool) -> str:
    """The grammar of ``[name(argument=value, ...), ...]``, and of ``[]`` for no call.

    Args:
        prose: whether an answer without a call may also be in words.

    Raises:
        DataError: the question's calls are not in Python, or a function has more than 64 arguments.
    """
    rules = _Rules(PYTHON, question)
    calls = []
    for function in _distinct(question):
        if read_calls(f"{function.name}()") == [Call(function.name, {})]:
            members = rules.members(*_arguments(function, _reads_as_keyword), _keyword)
            calls.append(f'{quote(f"{function.name}(")} {members} ")"')
    call_list = f'"[" {_list_of(rules.choice(calls))}? "]"' if calls else '"[]"'
    return rules.grammar(f"SPACE? ({call_list}{' | PROSE' if prose else ''})", f"SPACE: / /\nPROSE: /{PROSE}/")


def json_calls(question: ToolQuestion, tags: Tags, *, prose: bool = True, several: bool = True) -> str:
    """The grammar of ``{"name": ..., "arguments": {...}}``: one call, a list, or calls in ``<tool_call>`` tags.

    Words are allowed without calls or before the first tag, and not after the last tag. If decoding removes the tags,
    the reader sees bare JSON.

    Args:
        tags: the tokenizer's tokens for the tags.
        prose: whether an answer may be words, or begin with words; if not, it has at least one call.
        several: whether an answer may hold more than one call.

    Raises:
        DataError: as `python_calls`.
    """
    rules = _Rules(JSON, question)
    calls = []
    for function in _distinct(question):
        name = rules.any_spelling(native_name(function.name))
        members = rules.members(*_arguments(function, lambda name: True), rules.key)
        arguments = f"({rules.any_spelling('arguments')} | {rules.any_spelling('parameters')})"
        calls.append(f'"{{" {rules.key("name")} {name} COMMA {arguments} COLON "{{" {members} "}}" "}}"')
    answers = ["SPEECH", '"[]"'] if prose else []
    if calls:
        call = rules.choice(calls)
        answers += [call, f'"[" {_list_of(call) if several else call} "]"']
        has_tag_tokens = tags.opens is not None and tags.closes is not None
        opens, closes = quote(OPENS), quote(CLOSES)
        if has_tag_tokens:
            opens, closes = f"({opens} | <[{tags.opens}]>)", f"({closes} | <[{tags.closes}]>)"
        tagged = f"LINE? {call} LINE? {closes}"
        opening = (f"(written | SPEECH? <[{tags.opens}]>)" if has_tag_tokens else "written") if prose else opens
        answers.append(f"{opening} {tagged}" + (f" (LINE? {opens} {tagged})*" if several else ""))
    return rules.grammar(
        f"SPACE? ({' | '.join(answers)})",
        rf"""{f"written[lazy]: /({SPEECH})?{OPENS}/" if prose else ""}
SPACE: /[ \n]{{1,2}}/
LINE: /\n/
SPEECH: /{SPEECH}/ & ~/(?s:.*){OPENS}(?s:.*)/""",
    )


@dataclass(frozen=True)
class Tags:
    """A tokenizer's special tokens for ``<tool_call>`` and ``</tool_call>``.

    Attributes:
        opens: the token id of the opening tag; None if the tokenizer has no token for it.
        closes: the token id of the closing tag, or None likewise.
    """

    opens: int | None
    closes: int | None

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> Tags:
        """The tags among a tokenizer's added tokens."""
        added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
        return cls(added.get(OPENS), added.get(CLOSES))


class _Rules:
    """The rules of a grammar under unique names."""

    def __init__(self, notation: Notation, question: ToolQuestion) -> None:
        if question.language != "python":
            raise DataError(
                f"answers in {question.language} cannot be constrained",
                where=question.id,
                fix="leave its category out (penchant tool-calls: name the others with --category), or the constraint",
            )
        self._notation, self._where = notation, question.id
        self._lines: list[str] = []

    def grammar(self, start: str, terminals: str) -> str:
        """The whole grammar, with `start` as the body of its start rule."""
        # Forced tokens would exclude other tokens that spell the same text.
        options = '%llguidance {"no_forcing": true}'
        return "\n".join([options, f"start: {start}", *self._lines, terminals, self._notation.rules])

    def choice(self, bodies: Sequence[str]) -> str:
        """The name of a new rule that matches any one of the bodies."""
        return self._rule(" | ".join(bodies))

    def any_spelling(self, value: object) -> str:
        """An expression that matches every spelling of a value."""
        return one_of(self._notation.spellings(value))

    def members(
        self, properties: Mapping[str, Mapping[str, Any]], required: Sequence[str], key: Callable[[str], str]
    ) -> str:
        """The name of a rule that matches named values in any order, none twice and all required ones present.

        The bits of the rules' parameter (llguidance's parametric grammars) record which values were written; the
        required ones have the lowest bits.

        Raises:
            DataError: there are more than 64 properties.
        """
        if len(properties) > MAX_ARGUMENTS:
            raise DataError(
                f"a function takes {len(properties)} arguments; at most {MAX_ARGUMENTS} can be constrained",
                where=self._where,
                fix="leave this question out",
            )
        names = sorted(properties, key=lambda name: name not in required)
        members = [self._rule(f"{key(name)} {self._value(properties[name])}") for name in names]
        required_count = sum(name in required for name in names)
        ending = f'"" %if is_ones([0:{required_count}])' if required_count else '""'
        continuation = f"r{len(self._lines)}"
        self._lines.append(
            f"{continuation}::_: "
            + " | ".join(
                [
                    ending,
                    *(
                        f"COMMA {member} {continuation}::set_bit({bit}) %if bit_clear({bit})"
                        for bit, member in enumerate(members)
                    ),
                ]
            )
        )
        beginnings = [f"{member} {continuation}::0x{1 << bit:x}" for bit, member in enumerate(members)]
        return self._rule(" | ".join(beginnings if required_count else ['""', *beginnings]))

    def _value(self, schema: Mapping[str, Any]) -> str:
        """The name of a rule for values of the schema's type; a type that `matching` does not know is a string."""
        type_label = type_name(schema.get("type", "any"))
        kind = None if type_label == "any" else PYTHON_TYPES.get(type_label, str)
        choices = [choice for choice in schema.get("enum") or () if _fits(choice, kind)]
        if choices:
            return self._rule(" | ".join(map(self.any_spelling, choices)))
        if kind is list:
            # Some schemas put the enum of the elements beside `items` instead of inside it.
            enum = {"enum": schema["enum"]} if schema.get("enum") else {}
            items = {**enum, **(schema.get("items") or {})}
            return self._rule(f'"[" {_list_of(self._value(items))}? "]"') if items else "any_list"
        if kind is dict and schema.get("properties"):
            # Some schemas have a boolean `required` per argument instead of a list of names.
            required_entry = schema.get("required")
            required = [
                name for name in schema["properties"] if isinstance(required_entry, list) and name in required_entry
            ]
            return self._rule(f'"{{" {self.members(schema["properties"], required, self.key)} "}}"')
        return TERMINALS[kind]

    def key(self, name: str) -> str:
        """An expression that matches the key of a dict's entry and its colon."""
        return f"{self.any_spelling(name)} COLON"

    def _rule(self, body: str) -> str:
        name = f"r{len(self._lines)}"
        self._lines.append(f"{name}: {body}")
        return name


TERMINALS: Mapping[type | None, str] = {
    None: "anything", str: "STRING", int: "INTEGER", float: "NUMBER", bool: "BOOLEAN", list: "any_list",
    dict: "any_dict",
}  # fmt: skip


def _fits(value: object, kind: type | None) -> bool:
    return kind is None or type(value) is kind or (kind is float and type(value) is int)


def _list_of(element: str) -> str:
    return f"({element} (COMMA {element})*)"


def _keyword(name: str) -> str:
    return quote(f"{name}=")


def _reads_as_keyword(name: str) -> bool:
    """Whether the reader accepts the name as that of an argument; it does not accept Python's keywords."""
    return read_calls(f"f({name}=0)") == [Call("f", {name: 0})]


def _distinct(question: ToolQuestion) -> list[Function]:
    """The functions on offer; of several with the same name the first, as in `matching`."""
    return list({function.name: function for function in reversed(question.functions)}.values())[::-1]


def _arguments(
    function: Function, readable: Callable[[str], bool]
) -> tuple[Mapping[str, Mapping[str, Any]], Sequence[str]]:
    """The schemas of the arguments whose names can be written, and the names of the required ones among them."""
    properties = function.schema["parameters"]["properties"]
    writable = {name: properties[name] for name in function.arguments if readable(name)}
    return writable, [name for name in function.required if name in writable]
