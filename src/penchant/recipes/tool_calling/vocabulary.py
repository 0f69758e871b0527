"""Words that new names and values are made of."""

from __future__ import annotations

import keyword
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from penchant.evaluation.tool_calls.questions import ToolQuestion


@dataclass(frozen=True)
class Vocabulary:
    """Words, in lower case."""

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
