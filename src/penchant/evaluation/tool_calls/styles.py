"""How a question is put to a model, and how its answer is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from penchant.data.chat import ChatRenderer
from penchant.data.groups import Message, Text
from penchant.data.messages import Context, with_context
from penchant.data.rendering import PLAIN, Rendering
from penchant.errors import ModelError
from penchant.evaluation.tool_calls.calls import Argument, Call, Function, Language
from penchant.evaluation.tool_calls.grammars import Tags, json_calls, python_calls
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.reading import native_name, read_calls, read_json_calls

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = """You compose function calls. Below are functions, then comes a question. Call one or more of them to do
what is asked. If none of them serves, or the question does not say what a function needs, say so instead.

Answer with calls alone, in this form: [name(argument=value, ...), ...]

Functions, in JSON:
{functions}"""

JSON_TYPES = {
    "dict": "object", "HashMap": "object", "Hashtable": "object", "float": "number", "double": "number",
    "byte": "integer", "short": "integer", "long": "integer", "Bigint": "integer", "Boolean": "boolean",
    "tuple": "array", "Array": "array", "ArrayList": "array", "Queue": "array", "Stack": "array", "Set": "array",
    "String": "string", "char": "string", "any": "string",
}  # fmt: skip
"""The leaderboard's names of types, and JSON Schema's."""

MARKS = {"user": "Q", "assistant": "A"}

NAMES = {"java": "Java", "javascript": "JavaScript"}


class Ask(Protocol):
    """A question as the prompt of a style."""

    def __call__(
        self, question: ToolQuestion, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN, /
    ) -> Text: ...


@dataclass(frozen=True)
class Style:
    """One way to ask.

    Attributes:
        ask: the prompt.
        read: an answer's calls; None where there are none to be read.
        grammar: what an answer may be where it is constrained; a DataError where that cannot be said.
    """

    ask: Ask
    read: Callable[[str, ToolQuestion], list[Call] | None]
    grammar: Callable[[ToolQuestion, PreTrainedTokenizerBase], str]


def as_messages(question: ToolQuestion) -> Text:
    """Functions in a system message; calls in the language's own syntax."""
    functions = "\n".join(json.dumps(function.schema, ensure_ascii=False) for function in question.functions)
    system = SYSTEM.replace("{functions}", functions)
    first, *rest = question.messages
    if first["role"] == "system":
        return (Message(role="system", content=f"{system}\n\n{first['content']}"), *rest)
    return (Message(role="system", content=system), first, *rest)


def native(question: ToolQuestion, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN) -> Text:
    """Functions as the tools of the model's own chat template; calls in JSON.

    JSON has no literals of Java and JavaScript: their arguments are strings, and described as what these hold.

    Raises:
        ModelError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template", fix="--style signatures, which needs none")
    tools = tuple(
        {"type": "function", "function": _tool(function, question.language)} for function in question.functions
    )
    return ChatRenderer(tokenizer, rendering).prompt(with_context(question.messages, Context(tools=tools))).text


def as_signatures(question: ToolQuestion) -> Text:
    """One short line for each function, then what was said, as plain text: for small models without a chat template.

    What a user said begins with ``Q:``, what an assistant said with ``A:``, anything else with its role.
    """
    lines = [signature(function) for function in question.functions]
    said = [f"{MARKS.get(each['role'], each['role'])}: {each['content']}" for each in question.messages]
    return "\n".join([*lines, *said, "A:"])


def signature(function: Function) -> str:
    """``name(argument: type, argument?: type)``, what may be left out with a question mark."""
    arguments = (
        f"{name}{'' if name in function.required else '?'}: {each.type}{f' of {each.items}' if each.items else ''}"
        for name, each in function.arguments.items()
    )
    return f"{function.name}({', '.join(arguments)})"


STYLES: Mapping[str, Style] = {
    "messages": Style(
        lambda question, tokenizer, rendering=PLAIN: as_messages(question),
        lambda answer, question: read_calls(answer, question.language),
        lambda question, tokenizer: python_calls(question, prose=True),
    ),
    "native": Style(
        native,
        lambda answer, question: read_json_calls(answer, question.functions),
        lambda question, tokenizer: json_calls(question, Tags.of(tokenizer)),
    ),
    "signatures": Style(
        lambda question, tokenizer, rendering=PLAIN: as_signatures(question),
        lambda answer, question: read_calls(answer, question.language),
        lambda question, tokenizer: python_calls(question, prose=False),
    ),
}


def _tool(function: Function, language: Language) -> dict[str, Any]:
    """A schema as JSON Schema has it, under a name that templates allow."""
    schema = function.schema if language == "python" else _in_strings(function, NAMES[language])
    return {**_json_schema(schema), "name": native_name(function.name)}


def _in_strings(function: Function, language: str) -> dict[str, Any]:
    """The schema with each argument a string that holds a value of the language."""
    parameters = function.schema["parameters"]
    properties = {
        name: {
            **{key: value for key, value in each.items() if key not in ("items", "properties", "required")},
            "type": "string",
            "description": _joined(each.get("description"), _described(each, function.arguments[name], language)),
        }
        for name, each in parameters["properties"].items()
    }
    told = _joined(function.schema.get("description"), f"It is a function of {language}.")
    return {**function.schema, "description": told, "parameters": {**parameters, "properties": properties}}


def _described(schema: Mapping[str, Any], argument: Argument, language: str) -> str:
    kind = "any type" if argument.type == "any" else f"type {argument.type}"
    told = f"A value of {kind} in {language}, written in a string as {language} writes it."
    if argument.items is not None:
        told += f" Its elements are of type {argument.items}."
    if schema.get("properties"):
        told += f" Its entries: {json.dumps(schema['properties'], ensure_ascii=False)}"
    return told


def _joined(said: object, more: str) -> str:
    return f"{said} {more}" if said else more


def _json_schema(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_schema(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    kind = value.get("type")
    renamed: dict[str, Any] = {"type": JSON_TYPES.get(kind, kind)} if isinstance(kind, str) else {}
    if isinstance(kind, list):
        renamed["type"] = [JSON_TYPES.get(str(each), each) for each in kind]
    return {**{key: _json_schema(each) for key, each in value.items()}, **renamed}
