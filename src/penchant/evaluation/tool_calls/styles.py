"""How a question is put to a model, and how its answer is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penchant.data.groups import Message, Text
from penchant.errors import ModelError
from penchant.evaluation.tool_calls.calls import Call, Function
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


@dataclass(frozen=True)
class Style:
    """One way to ask.

    Attributes:
        ask: the prompt.
        read: an answer's calls; None where there are none to be read.
        grammar: what an answer may be where it is constrained; a DataError where that cannot be said.
    """

    ask: Callable[[ToolQuestion, PreTrainedTokenizerBase], Text]
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


def native(question: ToolQuestion, tokenizer: PreTrainedTokenizerBase) -> Text:
    """Functions as the tools of the model's own chat template; calls in JSON.

    Raises:
        ModelError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template", fix="ask in another style: messages or signatures")
    tools = [{"type": "function", "function": _tool(function)} for function in question.functions]
    return str(
        tokenizer.apply_chat_template(
            [dict(message) for message in question.messages], tools=tools, add_generation_prompt=True, tokenize=False
        )
    )


def as_signatures(question: ToolQuestion) -> Text:
    """One short line for each function, then the question, as plain text: for small models without a chat template."""
    lines = [signature(function) for function in question.functions]
    return "\n".join([*lines, f"Q: {question.text}", "A:"])


def signature(function: Function) -> str:
    """``name(argument: type, argument?: type)``, what may be left out with a question mark."""
    arguments = (
        f"{name}{'' if name in function.required else '?'}: {each.type}{f' of {each.items}' if each.items else ''}"
        for name, each in function.arguments.items()
    )
    return f"{function.name}({', '.join(arguments)})"


STYLES: Mapping[str, Style] = {
    "messages": Style(
        lambda question, tokenizer: as_messages(question),
        lambda answer, question: read_calls(answer, question.language),
        lambda question, tokenizer: python_calls(question, prose=True),
    ),
    "native": Style(
        native,
        lambda answer, question: read_json_calls(answer, question.functions),
        lambda question, tokenizer: json_calls(question, Tags.of(tokenizer)),
    ),
    "signatures": Style(
        lambda question, tokenizer: as_signatures(question),
        lambda answer, question: read_calls(answer, question.language),
        lambda question, tokenizer: python_calls(question, prose=False),
    ),
}


def _tool(function: Function) -> dict[str, Any]:
    """A schema as JSON Schema has it, under a name that templates allow."""
    return {**_json_schema(function.schema), "name": native_name(function.name)}


def _json_schema(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_schema(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    kind = value.get("type")
    renamed = {"type": JSON_TYPES.get(kind, kind)} if isinstance(kind, str) else {}
    return {**{key: _json_schema(each) for key, each in value.items()}, **renamed}
