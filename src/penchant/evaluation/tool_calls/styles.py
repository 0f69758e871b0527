"""Styles: how a question becomes a prompt, how the answer is read, and the grammar of constrained answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from penchant.data.chat import ChatRenderer
from penchant.data.groups import Message, Text
from penchant.data.messages import Context, ToolCall, with_context
from penchant.data.rendering import PLAIN, Rendering
from penchant.data.template import Template
from penchant.errors import ModelError
from penchant.evaluation.tool_calls.calls import Argument, Call, Function, Language
from penchant.evaluation.tool_calls.grammars import Tags, json_calls, python_calls
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.reading import native_name, read_calls, read_json_calls, write_calls

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
"""JSON Schema's names of types by the leaderboard's names."""

ROLE_MARKS = {"user": "Q", "assistant": "A"}

LANGUAGE_NAMES = {"java": "Java", "javascript": "JavaScript"}


SEVERAL_TURNS = """The user may go on after your answer. After calls you are shown their results: then call again, until
all that the user asked for is done, and end with an answer without calls."""


class PromptFunction(Protocol):
    """A function that returns the prompt of a question."""

    def __call__(
        self, question: ToolQuestion, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN, /
    ) -> Text: ...


@dataclass(frozen=True)
class Style:
    """A style of prompts and answers.

    Attributes:
        ask: returns the prompt of a question.
        read: returns the calls of an answer; None if none can be read.
        grammar: returns the grammar of a question's constrained answers; raises a DataError if there is none.
        follow: returns an answer with calls, and their results, as messages of the conversation after it.
        instruction: the system message that begins a conversation of several turns; empty for none.
    """

    ask: PromptFunction
    read: Callable[[str, ToolQuestion], list[Call] | None]
    grammar: Callable[[ToolQuestion, PreTrainedTokenizerBase], str]
    follow: Callable[[str, Sequence[Call], Sequence[str]], list[Message]]
    instruction: str = ""


def as_messages(question: ToolQuestion) -> Text:
    """The prompt with the functions in a system message; calls are answered in the question's language."""
    functions = "\n".join(json.dumps(function.schema, ensure_ascii=False) for function in question.functions)
    system = SYSTEM.replace("{functions}", functions)
    first_message, *later_messages = question.messages
    if first_message["role"] == "system":
        return (Message(role="system", content=f"{system}\n\n{first_message['content']}"), *later_messages)
    return (Message(role="system", content=system), first_message, *later_messages)


def native(question: ToolQuestion, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN) -> Text:
    """The prompt with the functions as the tools of the model's chat template; calls are answered in JSON.

    JSON lacks the literals of Java and JavaScript: their arguments become strings whose descriptions name the type of
    the value in the string.

    Raises:
        ModelError: the tokenizer has no chat template, or one that ignores tools.
    """
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template", fix="--style signatures, which needs none")
    if not Template.from_tokenizer(tokenizer, tools=True).mentions("tools"):
        raise ModelError(
            "the model's chat template ignores tools",
            fix="--style messages, or a template that writes them: --chat-template FILE",
        )
    tools = tuple(
        {"type": "function", "function": _tool(function, question.language)} for function in question.functions
    )
    return ChatRenderer(tokenizer, rendering).prompt(with_context(question.messages, Context(tools=tools))).text


def as_signatures(question: ToolQuestion) -> Text:
    """The prompt as plain text: a line per function, then a line per message. It needs no chat template.

    A user's message begins with ``Q:``, an assistant's with ``A:``, and any other with its role.
    """
    lines = [signature(function) for function in question.functions]
    turns = [
        f"{ROLE_MARKS.get(message['role'], message['role'])}: {message['content']}" for message in question.messages
    ]
    return "\n".join([*lines, *turns, "A:"])


def signature(function: Function) -> str:
    """``name(argument: type, argument?: type)``, optional arguments with a question mark."""
    arguments = (
        f"{name}{'' if name in function.required else '?'}: "
        f"{argument.type}{f' of {argument.items}' if argument.items else ''}"
        for name, argument in function.arguments.items()
    )
    return f"{function.name}({', '.join(arguments)})"


def _results_as_user_message(answer: str, calls: Sequence[Call], results: Sequence[str]) -> list[Message]:
    """Many chat templates refuse tool messages, or those that no call in the template's own form precedes."""
    rows = [
        json.dumps({"call": write_calls([call])[1:-1], "result": result}, ensure_ascii=False)
        for call, result in zip(calls, results, strict=True)
    ]
    content = "\n".join(["Results of the calls, in JSON:", *rows])
    return [Message(role="assistant", content=answer.strip()), Message(role="user", content=content)]


def _results_as_lines(answer: str, calls: Sequence[Call], results: Sequence[str]) -> list[Message]:
    return [
        Message(role="assistant", content=answer.strip()),
        *(Message(role="tool", content=result) for result in results),
    ]


def _results_as_tool_messages(answer: str, calls: Sequence[Call], results: Sequence[str]) -> list[Message]:
    # Some templates want ids, and Mistral's of nine letters.
    ids = [f"call{number:05}" for number in range(len(calls))]
    return [
        native_answer(calls, ids),
        *(
            Message(role="tool", name=native_name(call.name), tool_call_id=call_id, content=result)
            for call, call_id, result in zip(calls, ids, results, strict=True)
        ),
    ]


def native_answer(calls: Sequence[Call], ids: Sequence[str]) -> Message:
    """Calls as the message that a chat template writes in the model's own form.

    Args:
        ids: an id for every call.
    """
    return Message(
        role="assistant",
        content="",
        tool_calls=[
            ToolCall(
                type="function",
                id=call_id,
                function={"name": native_name(call.name), "arguments": dict(call.arguments)},
            )
            for call, call_id in zip(calls, ids, strict=True)
        ],
    )


STYLES: Mapping[str, Style] = {
    "messages": Style(
        lambda question, tokenizer, rendering=PLAIN: as_messages(question),
        lambda answer, question: read_calls(answer, question.language),
        lambda question, tokenizer: python_calls(question, prose=True),
        _results_as_user_message,
        SEVERAL_TURNS,
    ),
    "native": Style(
        native,
        lambda answer, question: read_json_calls(answer, question.functions),
        lambda question, tokenizer: json_calls(question, Tags.from_tokenizer(tokenizer)),
        _results_as_tool_messages,
    ),
    "signatures": Style(
        lambda question, tokenizer, rendering=PLAIN: as_signatures(question),
        lambda answer, question: read_calls(answer, question.language),
        lambda question, tokenizer: python_calls(question, prose=False),
        _results_as_lines,
    ),
}


def _tool(function: Function, language: Language) -> dict[str, Any]:
    """A function's schema in JSON Schema, under a name that chat templates allow."""
    schema = function.schema if language == "python" else _with_string_arguments(function, LANGUAGE_NAMES[language])
    return {**_json_schema(schema), "name": native_name(function.name)}


def _with_string_arguments(function: Function, language: str) -> dict[str, Any]:
    """The schema with every argument as a string that holds a value of the language."""
    parameters = function.schema["parameters"]
    properties = {
        name: {
            **{key: value for key, value in property_schema.items() if key not in ("items", "properties", "required")},
            "type": "string",
            "description": _join_sentences(
                property_schema.get("description"),
                _value_description(property_schema, function.arguments[name], language),
            ),
        }
        for name, property_schema in parameters["properties"].items()
    }
    description = _join_sentences(function.schema.get("description"), f"It is a function of {language}.")
    return {**function.schema, "description": description, "parameters": {**parameters, "properties": properties}}


def _value_description(schema: Mapping[str, Any], argument: Argument, language: str) -> str:
    kind = "any type" if argument.type == "any" else f"type {argument.type}"
    description = f"A value of {kind} in {language}, written in a string as {language} writes it."
    if argument.items is not None:
        description += f" Its elements are of type {argument.items}."
    if schema.get("properties"):
        description += f" Its entries: {json.dumps(schema['properties'], ensure_ascii=False)}"
    return description


def _join_sentences(description: object, sentence: str) -> str:
    return f"{description} {sentence}" if description else sentence


def _json_schema(value: Any) -> Any:
    """A schema, or a part of it, with the leaderboard's names of types replaced by those of JSON Schema."""
    if isinstance(value, list):
        return [_json_schema(element) for element in value]
    if not isinstance(value, Mapping):
        return value
    kind = value.get("type")
    types: dict[str, Any] = {"type": JSON_TYPES.get(kind, kind)} if isinstance(kind, str) else {}
    if isinstance(kind, list):
        types["type"] = [JSON_TYPES.get(str(element), element) for element in kind]
    return {**{key: _json_schema(element) for key, element in value.items()}, **types}
