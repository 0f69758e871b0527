"""Variants of a question under other names and values, which can only be answered by reading it.

A small model that has seen a few hundred functions remembers them; what it should learn is to take names, arguments and
values from what stands before it. In a variant functions and arguments have other names, and the numbers and texts that
the question itself says are others, there and in the answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from penchant.data.groups import Message
from penchant.evaluation.tool_calls.calls import Accepted, Function
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.recipes.tool_calling.values import Said
from penchant.recipes.tool_calling.vocabulary import Vocabulary

TRIES = 20


@dataclass(frozen=True)
class Names:
    """New names of a question's functions and of their arguments, by the old ones."""

    functions: Mapping[str, str]
    arguments: Mapping[str, str]

    @classmethod
    def kept(cls, question: ToolQuestion) -> Names:
        """None is new."""
        return cls(
            {function.name: function.name for function in question.functions},
            {name: name for function in question.functions for name in function.arguments},
        )

    def drawn(self, words: Vocabulary, draw: random.Random, taken: Collection[str]) -> Names:
        """Others, each once and no function's among those that are taken; these, where none are found."""
        for _ in range(TRIES):
            modules = [words.name(draw, 1) + "." if "." in name else "" for name in self.functions]
            functions = [module + words.name(draw, draw.randint(1, 3)) for module in modules]
            arguments = [words.name(draw, draw.randint(1, 2)) for _ in self.arguments]
            different = len(set(functions)) == len(functions) and len(set(arguments)) == len(arguments)
            # In lower case, as the parts of the data are told apart.
            if different and not any(name.lower() in taken for name in functions):
                return Names(
                    dict(zip(self.functions, functions, strict=True)), dict(zip(self.arguments, arguments, strict=True))
                )
        return self

    def of(self, function: Function) -> Function:
        """The function under its new name, with arguments under theirs."""
        name, properties = self.functions[function.name], function.schema["parameters"]["properties"]
        parameters = {
            **function.schema["parameters"],
            "properties": {self.arguments[key]: each for key, each in properties.items()},
            "required": [self.arguments[key] for key in function.required if key in self.arguments],
        }
        return Function.read({**function.schema, "name": name, "parameters": parameters}, name)

    def due(self, accepted: Accepted) -> Accepted:
        """A call under its new name; what is accepted for an argument that no function takes is left out."""
        return {
            self.functions[name]: {self.arguments[key]: values for key, values in each.items() if key in self.arguments}
            for name, each in accepted.items()
        }


def variant(
    question: ToolQuestion, words: Vocabulary, draw: random.Random, taken: Collection[str] = ()
) -> ToolQuestion:
    """The question under other names and with other values; what was accepted still is, as far as it can be said.

    Names stay in half of the cases, so that what they mean is learnt too; and where no call is due, as nothing else
    tells that none of the functions serves.

    Args:
        taken: names in lower case that no function gets.
    """
    names = Names.kept(question)
    if question.accepted and draw.random() < 0.5:
        names = names.drawn(words, draw, taken)
    text, accepted = Said.by(question).swapped(question, words, draw)
    last = Message(role=question.messages[-1]["role"], content=text)
    return replace(
        question,
        messages=(*question.messages[:-1], last),
        functions=tuple(map(names.of, question.functions)),
        accepted=None if question.accepted is None else tuple(map(names.due, accepted)),
    )


def misplaced(
    made: ToolQuestion, question: ToolQuestion, others: Sequence[ToolQuestion], draw: random.Random
) -> ToolQuestion | None:
    """A variant of a question under functions of another one, where no call is due; None where none was found.

    They have no word in common with the question and its own functions: what is called alike may serve after all.
    """
    own = _stems(question.text, made.text, *(function.name for function in question.functions))
    for _ in range(TRIES):
        functions = draw.choice(others).functions
        if functions and not own & _stems(*(function.name for function in functions)):
            return replace(made, category="irrelevance", functions=functions, accepted=())
    return None


def _stems(*texts: str) -> set[str]:
    """The first four letters of words that have so many."""
    parted = re.sub(r"([a-z])([A-Z])", r"\1 \2", " ".join(texts)).replace("_", " ")
    return {word[:4].lower() for word in re.findall(r"[A-Za-z]{4,}", parted)}
