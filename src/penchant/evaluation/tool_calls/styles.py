"""Styles: how a question becomes a prompt, how the answer is read, and the grammar of constrained answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penchant.data.chat import ChatRenderer
from penchant.data.groups import Message, PreferenceGroup, Text
from penchant.data.messages import Context, ToolCall, with_context
from penchant.data.rendering import PLAIN, Rendering
from penchant.data.template import Template
from penchant.data.template_tokens import TemplateTokens
from penchant.errors import ModelError
from penchant.evaluation.tool_calls.calls import Argument, Call, Function, Language
from penchant.evaluation.tool_calls.grammars import Tags, json_calls, python_calls
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.reading import native_name, read_calls, read_native_calls, write_calls

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


@dataclass(frozen=True)
class Style:
    """A style of prompts and answers.

    Attributes:
        ask: returns the prompt of a question.
        read: returns the calls of an answer; None if none can be read.
        write: returns calls as the answer to train on, after the prompt; the answer in which no call is due for none.
        grammar: returns the grammar of a question's constrained answers; raises a DataError if there is none.
        follow: returns an answer with calls, and their results, as messages of the conversation after it.
        check: raises a ModelError if the tokenizer cannot write the prompts.
        instruction: the system message that begins a conversation of several turns; empty for none.
    """

    ask: Callable[[ToolQuestion], Text]
    read: Callable[[str, ToolQuestion], list[Call] | None]
    write: Callable[[Sequence[Call]], Text]
    grammar: Callable[[ToolQuestion, Tags], str]
    follow: Callable[[str, Sequence[Call], Sequence[str]], list[Message]]
    check: Callable[[PreTrainedTokenizerBase], None] = lambda tokenizer: None
    instruction: str = ""


def as_messages(question: ToolQuestion) -> Text:
    """The prompt with the functions in a system message; calls are answered in the question's language."""
    functions = "\n".join(json.dumps(function.schema, ensure_ascii=False) for function in question.functions)
    system = SYSTEM.replace("{functions}", functions)
    first_message, *later_messages = question.messages
    if first_message["role"] == "system":
        return (Message(role="system", content=f"{system}\n\n{first_message['content']}"), *later_messages)
    return (Message(role="system", content=system), first_message, *later_messages)


def as_tools(question: ToolQuestion) -> Text:
    """The prompt with the functions as tools, which the model's chat template writes; calls are answered in its form.

    JSON lacks the literals of Java and JavaScript: their arguments become strings whose descriptions name the type of
    the value in the string.
    """
    tools = tuple(
        {"type": "function", "function": _tool(function, question.language)} for function in question.functions
    )
    return with_context(question.messages, Context(tools=tools))


OTHER_TEMPLATE = "another chat template: data.chat_template=FILE"


def require_tools(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a tokenizer's chat template writes tools.

    Raises:
        ModelError: it has no chat template, or one that ignores tools.
    """
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template", fix="style signatures, which needs none")
    if not Template.from_tokenizer(tokenizer, tools=True).mentions("tools"):
        raise ModelError("the model's chat template ignores tools", fix=f"style messages, or {OTHER_TEMPLATE}")


def require_readable_calls(tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN) -> None:
    """Check that a call that the tokenizer's chat template writes is read as that call.

    Raises:
        ModelError: as `require_tools`, or the call is read as anything else.
        DataError: the template refuses calls.
    """
    require_tools(tokenizer)
    schema = {"name": "add", "parameters": {"type": "dict", "properties": {"x": {"type": "integer"}}}}
    function = Function.read(schema, "an example")
    question = ToolQuestion("", "", (Message(role="user", content="Add 1."),), (function,), None)
    calls = [Call("add", {"x": 1})]
    text = ChatRenderer(tokenizer, rendering).group(PreferenceGroup(as_tools(question), (write_native(calls),)))
    answer = text.sequences[0].removeprefix(text.prompt)
    ends = {tokenizer.eos_token_id, *TemplateTokens.from_tokenizer(tokenizer).ends} - {None}
    for token in tokenizer.convert_ids_to_tokens(sorted(ends)):
        answer = answer.replace(token, "")
    if read_native_calls(answer, [function]) != calls:
        raise ModelError(
            f"the chat template writes calls that cannot be read back: {answer.strip()!r}",
            fix=f"style messages, or {OTHER_TEMPLATE}",
        )


NO_CALL_IS_DUE = "None of the functions serves."


def write_native(calls: Sequence[Call]) -> tuple[Message]:
    """Calls as the message that a chat template writes in the model's own form; a sentence for no call."""
    if not calls:
        return (Message(role="assistant", content=NO_CALL_IS_DUE),)
    # Some templates want ids, and Mistral's of nine letters.
    tool_calls = [
        ToolCall(
            type="function",
            id=f"call{number:05}",
            function={"name": native_name(call.name), "arguments": dict(call.arguments)},
        )
        for number, call in enumerate(calls)
    ]
    return (Message(role="assistant", content="", tool_calls=tool_calls),)


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
    [message] = write_native(calls)
    return [
        message,
        *(
            Message(role="tool", name=call["function"]["name"], tool_call_id=call["id"], content=result)
            for call, result in zip(message["tool_calls"], results, strict=True)
        ),
    ]


def _read_python_calls(answer: str, question: ToolQuestion) -> list[Call] | None:
    return read_calls(answer, question.language)


STYLES: Mapping[str, Style] = {
    "messages": Style(
        ask=as_messages,
        read=_read_python_calls,
        write=lambda calls: (Message(role="assistant", content=write_calls(calls)),),
        grammar=lambda question, tags: python_calls(question, prose=True),
        follow=_results_as_user_message,
        instruction=SEVERAL_TURNS,
    ),
    "native": Style(
        ask=as_tools,
        read=lambda answer, question: read_native_calls(answer, question.functions),
        write=write_native,
        grammar=json_calls,
        follow=_results_as_tool_messages,
        check=require_tools,
    ),
    "signatures": Style(
        ask=as_signatures,
        read=_read_python_calls,
        write=lambda calls: f" {write_calls(calls)}",
        grammar=lambda question, tags: python_calls(question, prose=False),
        follow=_results_as_lines,
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
