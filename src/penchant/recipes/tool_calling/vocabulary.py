"""The words of new names and values."""

from __future__ import annotations

import keyword
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from penchant.evaluation.tool_calls.questions import ToolQuestion


@dataclass(frozen=True)
class Vocabulary:
    """Lower-case words to make names and values of."""

    words: Sequence[str]

    @classmethod
    def from_questions(cls, questions: Sequence[ToolQuestion]) -> Vocabulary:
        """The words of 3 to 10 letters in questions and in the names on offer."""
        names = " ".join(
            name.replace("_", " ").replace(".", " ")
            for question in questions
            for function in question.functions
            for name in (function.name, *function.arguments)
        )
        texts = " ".join(question.text for question in questions)
        words = {word.lower() for word in re.findall(r"[A-Za-z]{3,10}", f"{names} {texts}")}
        return cls(sorted(word for word in words if not keyword.iskeyword(word)))

    def name(self, draw: random.Random, parts: int) -> str:
        """A random snake-case name of so many words."""
        return "_".join(draw.choices(self.words, k=parts))
