"""Variants of a question under other names and values, which can only be answered by reading it.

A small model that has seen a few hundred functions remembers them; what it should learn is to take names, arguments and
values from what stands before it. In a variant functions and arguments have other names, and the numbers and texts that
the question itself says are others, there and in the answer.
"""

from __future__ import annotations

import keyword
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from penchant.data.groups import Message
from penchant.evaluation.tool_calls.calls import Accepted, Function
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.recipes.tool_calling.right import right_calls


@dataclass(frozen=True)
class Vocabulary:
    """Words that new names and values are made of."""

    words: Sequence[str]

    @classmethod
    def of(cls, questions: Sequence[ToolQuestion]) -> Vocabulary:
        """The words of questions and of the names on offer."""
        names = " ".join(
            name.replace("_", " ").replace(".", " ")
            for question in questions
            for function in question.functions
            for name in (function.name, *function.arguments)
        )
        texts = " ".join(question.text for question in questions)
        found = {word.lower() for word in re.findall(r"[A-Za-z]{3,10}", f"{names} {texts}")}
        return cls(sorted(word for word in found if not keyword.iskeyword(word)))

    def name(self, draw: random.Random, parts: int) -> str:
        """A snake-case name."""
        return "_".join(draw.choices(self.words, k=parts))


def variant(question: ToolQuestion, words: Vocabulary, draw: random.Random) -> ToolQuestion:
    """The question under other names and with other values; one right answer is accepted.

    Names stay in half of the cases, so that what they mean is learnt too; and where no call is due, as nothing else
    tells that none of the functions serves.
    """
    calls = right_calls(question)
    functions = {function.name: function.name for function in question.functions}
    arguments = {name: name for function in question.functions for name in function.arguments}
    if calls and draw.random() < 0.5:
        modules = [words.name(draw, 1) + "." if "." in name else "" for name in functions]
        functions = {
            name: module + words.name(draw, draw.randint(1, 3)) for name, module in zip(functions, modules, strict=True)
        }
        arguments = {name: words.name(draw, draw.randint(1, 2)) for name in arguments}
    text = question.text
    values: dict[Any, Any] = {}
    for call in calls:
        for value in call.arguments.values():
            for said in value if isinstance(value, list) else [value]:
                text = _say_another(said, text, values, words, draw)
    accepted: list[Accepted] = [
        {functions[call.name]: {arguments[key]: [_swapped(value, values)] for key, value in call.arguments.items()}}
        for call in calls
    ]
    if len(set(functions.values())) < len(functions) or len(set(arguments.values())) < len(arguments):
        return variant(question, words, draw)
    last = Message(role=question.messages[-1]["role"], content=text)
    return replace(
        question,
        messages=(*question.messages[:-1], last),
        functions=tuple(_renamed(each, functions[each.name], arguments) for each in question.functions),
        accepted=tuple(accepted),
    )


def _say_another(said: Any, text: str, values: dict[Any, Any], words: Vocabulary, draw: random.Random) -> str:
    """The text with another value where it says this one; `values` then has it."""
    if isinstance(said, bool) or not isinstance(said, int | float | str) or not str(said) or said in values:
        return text
    found = re.search(rf"(?<![\w.]){re.escape(_spelled(said))}(?![\w]|\.\d)", text)
    if not found:
        return text
    new = _another(said, words, draw)
    if new in values.values() or re.search(rf"(?<!\w){re.escape(_spelled(new))}(?!\w)", text):
        return text
    values[said] = new
    return text[: found.start()] + _spelled(new) + text[found.end() :]


def _another(value: Any, words: Vocabulary, draw: random.Random) -> Any:
    if isinstance(value, int):
        digits = len(str(abs(value)))
        return draw.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)
    if isinstance(value, float):
        return round(draw.uniform(0, 10 ** len(str(int(abs(value))))), 2)
    made = draw.choices(words.words, k=len(value.split()))
    return " ".join(word.capitalize() if value[:1].isupper() else word for word in made)


def _spelled(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _swapped(value: Any, values: Mapping[Any, Any]) -> Any:
    if isinstance(value, list):
        return [_swapped(each, values) for each in value]
    if isinstance(value, dict):
        # What a dict accepts for a key is a list of values.
        return {key: [_swapped(each, values)] for key, each in value.items()}
    return values.get(value, value) if not isinstance(value, bool) else value


def _renamed(function: Function, name: str, arguments: Mapping[str, str]) -> Function:
    properties = function.schema["parameters"]["properties"]
    parameters = {
        **function.schema["parameters"],
        "properties": {arguments[key]: each for key, each in properties.items()},
        "required": [arguments[key] for key in function.required if key in arguments],
    }
    return Function.read({**function.schema, "name": name, "parameters": parameters}, name)
