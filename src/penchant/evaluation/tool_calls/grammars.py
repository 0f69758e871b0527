"""What may be answered to a question, as a grammar: calls of the functions on offer, or no call.

Every text of a grammar is read by the style's own reader: as calls of known functions, with known arguments, each at
most once and the required ones all there, of values of their schema's type as `matching` has it; or as no call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penchant.errors import DataError
from penchant.evaluation.tool_calls.calls import Call, Function, type_name
from penchant.evaluation.tool_calls.matching import PYTHON_TYPES
from penchant.evaluation.tool_calls.notations import JSON, PYTHON, Notation, one_of, quoted
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.reading import native_name, read_calls

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_ARGUMENTS = 64
"""Of one function: the grammar remembers which were written in a number of so many bits."""

# What cannot be read as calls: words without an opening parenthesis; or two words beside each other, which begin no
# expression that is a call, whatever comes after. Calls in JSON are no calls to this reader, and no words either.
PROSE = r"[^\W\d_][^(]*|[^\W\d_]+[ ,]+[^\W\d_](?s:.*)"

# JSON begins with one of the brackets; backticks around it are taken away by the reader.
SPEECH = r"[^\s\[{`](?s:.*)"

OPENS, CLOSES = "<tool_call>", "</tool_call>"


def python_calls(question: ToolQuestion, *, prose: bool) -> str:
    """``[name(argument=value, ...), ...]``, and ``[]`` for no call.

    Args:
        prose: whether no call may also be said in words.

    Raises:
        DataError: the calls are due in another language; or a function has too many arguments to be told apart.
    """
    rules = _Rules(PYTHON, question)
    calls = []
    for function in _distinct(question):
        if read_calls(f"{function.name}()") == [Call(function.name, {})]:
            members = rules.members(*_arguments(function, _reads_as_keyword), _keyword)
            calls.append(f'{quoted(f"{function.name}(")} {members} ")"')
    listed = f'"[" {_list_of(rules.choice(calls))}? "]"' if calls else '"[]"'
    return rules.grammar(f"SPACE? ({listed}{' | PROSE' if prose else ''})", f"SPACE: / /\nPROSE: /{PROSE}/")


def json_calls(question: ToolQuestion, tags: Tags, *, prose: bool = True, several: bool = True) -> str:
    """``{"name": ..., "arguments": {...}}``: one, a list, or each in ``<tool_call>`` tags; or words without a tag.

    Words before the first tag are allowed, and none after the last. Where answers do not show the tags, the reader
    sees bare JSON: one call and no words.

    Args:
        prose: whether an answer may be in words, or begin with them; without them there is at least one call.
        several: whether an answer may hold more than one call.

    Raises:
        DataError: as `python_calls`.
    """
    rules = _Rules(JSON, question)
    calls = []
    for function in _distinct(question):
        name = rules.spelled(native_name(function.name))
        members = rules.members(*_arguments(function, lambda name: True), rules.key)
        arguments = f"({rules.spelled('arguments')} | {rules.spelled('parameters')})"
        calls.append(f'"{{" {rules.key("name")} {name} COMMA {arguments} COLON "{{" {members} "}}" "}}"')
    answers = ["SPEECH", '"[]"'] if prose else []
    if calls:
        call = rules.choice(calls)
        answers += [call, f'"[" {_list_of(call) if several else call} "]"']
        held = tags.opens is not None and tags.closes is not None
        opens, closes = quoted(OPENS), quoted(CLOSES)
        if held:
            opens, closes = f"({opens} | <[{tags.opens}]>)", f"({closes} | <[{tags.closes}]>)"
        tagged = f"LINE? {call} LINE? {closes}"
        first = (f"(written | SPEECH? <[{tags.opens}]>)" if held else "written") if prose else opens
        answers.append(f"{first} {tagged}" + (f" (LINE? {opens} {tagged})*" if several else ""))
    return rules.grammar(
        f"SPACE? ({' | '.join(answers)})",
        rf"""{f"written[lazy]: /({SPEECH})?{OPENS}/" if prose else ""}
SPACE: /[ \n]{{1,2}}/
LINE: /\n/
SPEECH: /{SPEECH}/ & ~/(?s:.*){OPENS}(?s:.*)/""",
    )


@dataclass(frozen=True)
class Tags:
    """What a tokenizer has for ``<tool_call>`` and ``</tool_call>``, beside their letters.

    Attributes:
        opens, closes: the tokens' ids; None where there is none.
    """

    opens: int | None
    closes: int | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Tags:
        added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
        return cls(added.get(OPENS), added.get(CLOSES))


class _Rules:
    """A grammar's rules, each under a name of its own."""

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
        """All of it, beginning with `start`."""
        # Forcing would take whole tokens where one character is sure, and forbid others that spell the same.
        options = '%llguidance {"no_forcing": true}'
        return "\n".join([options, f"start: {start}", *self._lines, terminals, self._notation.rules])

    def choice(self, bodies: Sequence[str]) -> str:
        """A rule of its own for one of these."""
        return self._rule(" | ".join(bodies))

    def spelled(self, value: object) -> str:
        """One value, in each way of writing it."""
        return one_of(self._notation.spellings(value))

    def members(
        self, properties: Mapping[str, Mapping[str, Any]], required: Sequence[str], key: Callable[[str], str]
    ) -> str:
        """Named values in any order, each at most once, the required ones all there.

        Which were written is kept in the bits of the rules' parameter (llguidance's parametric grammars); those
        that are required have the lowest.

        Raises:
            DataError: there are more than 64.
        """
        if len(properties) > MOST_ARGUMENTS:
            raise DataError(
                f"a function takes {len(properties)} arguments; at most {MOST_ARGUMENTS} can be constrained",
                where=self._where,
                fix="leave this question out",
            )
        names = sorted(properties, key=lambda name: name not in required)
        members = [self._rule(f"{key(name)} {self._value(properties[name])}") for name in names]
        needed = sum(name in required for name in names)
        done = f'"" %if is_ones([0:{needed}])' if needed else '""'
        more = f"r{len(self._lines)}"
        self._lines.append(
            f"{more}::_: "
            + " | ".join(
                [
                    done,
                    *(f"COMMA {each} {more}::set_bit({bit}) %if bit_clear({bit})" for bit, each in enumerate(members)),
                ]
            )
        )
        first = [f"{each} {more}::0x{1 << bit:x}" for bit, each in enumerate(members)]
        return self._rule(" | ".join(first if needed else ['""', *first]))

    def _value(self, schema: Mapping[str, Any]) -> str:
        """Of the schema's type, in the names that `matching` knows; what it does not know is a string."""
        named = type_name(schema.get("type", "any"))
        kind = None if named == "any" else PYTHON_TYPES.get(named, str)
        listed = [each for each in schema.get("enum") or () if _fits(each, kind)]
        if listed:
            return self._rule(" | ".join(map(self.spelled, listed)))
        if kind is list:
            # Some schemas put the list's choices beside its items instead of in them.
            beside = {"enum": schema["enum"]} if schema.get("enum") else {}
            items = {**beside, **(schema.get("items") or {})}
            return self._rule(f'"[" {_list_of(self._value(items))}? "]"') if items else "any_list"
        if kind is dict and schema.get("properties"):
            # Some schemas say of each argument, with true or false, whether it is required.
            asked = schema.get("required")
            required = [name for name in schema["properties"] if isinstance(asked, list) and name in asked]
            return self._rule(f'"{{" {self.members(schema["properties"], required, self.key)} "}}"')
        return TERMINALS[kind]

    def key(self, name: str) -> str:
        """Of a dict's entry."""
        return f"{self.spelled(name)} COLON"

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
    return quoted(f"{name}=")


def _reads_as_keyword(name: str) -> bool:
    """Whether it can be read back: Python's own words cannot, as arguments' names."""
    return read_calls(f"f({name}=0)") == [Call("f", {name: 0})]


def _distinct(question: ToolQuestion) -> list[Function]:
    """Of functions with one name the first, as `matching` has it."""
    return list({function.name: function for function in reversed(question.functions)}.values())[::-1]


def _arguments(
    function: Function, readable: Callable[[str], bool]
) -> tuple[Mapping[str, Mapping[str, Any]], Sequence[str]]:
    """The schemas of those that can be written, and which of them are required."""
    properties = function.schema["parameters"]["properties"]
    known = {name: properties[name] for name in function.arguments if readable(name)}
    return known, [name for name in function.required if name in known]
