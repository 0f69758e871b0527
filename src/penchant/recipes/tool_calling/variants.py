"""Variants of a question with other names and values, which a model can only answer by reading the prompt.

A small model that was trained on a few hundred functions memorizes them instead of reading names, arguments and values
from the prompt. In a variant, functions and arguments have other names, and numbers and words of the question are
replaced in the question and in the answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from penchant.data.groups import Message
from penchant.evaluation.tool_calls.calls import Accepted, Function
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.recipes.tool_calling.values import SwappableValues
from penchant.recipes.tool_calling.vocabulary import Vocabulary

TRIES = 20


@dataclass(frozen=True)
class NewNames:
    """New names of a question's functions and arguments by their old names."""

    functions: Mapping[str, str]
    arguments: Mapping[str, str]

    @classmethod
    def unchanged(cls, question: ToolQuestion) -> NewNames:
        """Names that are all equal to the old ones."""
        return cls(
            {function.name: function.name for function in question.functions},
            {name: name for function in question.functions for name in function.arguments},
        )

    def draw_others(self, words: Vocabulary, draw: random.Random, reserved_names: Collection[str]) -> NewNames:
        """Random distinct names, none of a function reserved; these names if no such draw succeeds."""
        for _ in range(TRIES):
            modules = [words.name(draw, 1) + "." if "." in name else "" for name in self.functions]
            functions = [module + words.name(draw, draw.randint(1, 3)) for module in modules]
            arguments = [words.name(draw, draw.randint(1, 2)) for _ in self.arguments]
            different = len(set(functions)) == len(functions) and len(set(arguments)) == len(arguments)
            # The parts of the data are kept apart by lower-case names.
            if different and not any(name.lower() in reserved_names for name in functions):
                return NewNames(
                    dict(zip(self.functions, functions, strict=True)), dict(zip(self.arguments, arguments, strict=True))
                )
        return self

    def rename_function(self, function: Function) -> Function:
        """The function with its new name and its arguments' new names."""
        name, properties = self.functions[function.name], function.schema["parameters"]["properties"]
        parameters = {
            **function.schema["parameters"],
            "properties": {self.arguments[key]: schema for key, schema in properties.items()},
            "required": [self.arguments[key] for key in function.required if key in self.arguments],
        }
        return Function.read({**function.schema, "name": name, "parameters": parameters}, name)

    def rename_call(self, accepted: Accepted) -> Accepted:
        """The accepted call with its new names, without arguments that no function takes."""
        return {
            self.functions[name]: {
                self.arguments[key]: values for key, values in arguments.items() if key in self.arguments
            }
            for name, arguments in accepted.items()
        }


def make_variant(
    question: ToolQuestion, words: Vocabulary, draw: random.Random, reserved_names: Collection[str] = ()
) -> ToolQuestion:
    """The question with other names and values, and the accepted calls with the same replacements.

    Half of the variants keep their names, so that the model also learns the names' meanings. So do questions without
    accepted calls, since only the names show that no function can answer them.

    Args:
        reserved_names: lower-case names that no function may get.
    """
    names = NewNames.unchanged(question)
    if question.accepted and draw.random() < 0.5:
        names = names.draw_others(words, draw, reserved_names)
    text, accepted = SwappableValues.from_question(question).swap(question, words, draw)
    last = Message(role=question.messages[-1]["role"], content=text)
    return replace(
        question,
        messages=(*question.messages[:-1], last),
        functions=tuple(map(names.rename_function, question.functions)),
        accepted=None if question.accepted is None else tuple(map(names.rename_call, accepted)),
    )


def with_unrelated_functions(
    variant_question: ToolQuestion, question: ToolQuestion, questions: Sequence[ToolQuestion], draw: random.Random
) -> ToolQuestion | None:
    """The variant with the functions of another question and no accepted call; None if no draw succeeds.

    The functions' names share no word with the question or its functions, since a function with a similar name may
    answer it after all.

    Args:
        variant_question: the variant.
        question: the question it is a variant of.
        questions: the questions whose functions are drawn.
    """
    stems = _word_stems(question.text, variant_question.text, *(function.name for function in question.functions))
    for _ in range(TRIES):
        functions = draw.choice(questions).functions
        if functions and not stems & _word_stems(*(function.name for function in functions)):
            return replace(variant_question, category="irrelevance", functions=functions, accepted=())
    return None


def _word_stems(*texts: str) -> set[str]:
    """The first four letters of all words with at least four, in lower case."""
    separated = re.sub(r"([a-z])([A-Z])", r"\1 \2", " ".join(texts)).replace("_", " ")
    return {word[:4].lower() for word in re.findall(r"[A-Za-z]{4,}", separated)}
