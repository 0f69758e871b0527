"""A model's calls: how many are right, by category."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.data.rendering import PLAIN, Rendering
from penchant.data.tokenization import tokenize_prompts
from penchant.engine.grammars import Grammars
from penchant.engine.progress import Progress
from penchant.engine.sampling import Guide, Sampling, sample
from penchant.evaluation.files import write_atomically
from penchant.evaluation.generation import ends_of, text_after
from penchant.evaluation.statistics import Estimate, proportion
from penchant.evaluation.tool_calls.calls import Fault
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.styles import Style

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answered:
    """A question, a model's answer, and what is wrong with it.

    Attributes:
        ended: whether the model ended it; else the limit of tokens cut it, and what there is of it was judged.
    """

    question: ToolQuestion
    answer: str
    fault: Fault | None
    ended: bool = True


@dataclass(frozen=True)
class ToolReport:
    """Shares of right answers.

    Attributes:
        categories: by name.
        overall: of all questions.
        macro: the mean of the categories' shares, each counting the same.
        faults: of the wrong answers, how many of each kind.
        cut: answers that the limit of tokens cut, right ones among them or not.
    """

    categories: Mapping[str, Estimate]
    overall: Estimate
    macro: Estimate
    faults: Mapping[str, int]
    cut: int

    @classmethod
    def of(cls, answered: Sequence[Answered]) -> ToolReport:
        by_category: dict[str, list[bool]] = {}
        for each in answered:
            by_category.setdefault(each.question.category, []).append(each.fault is None)
        right = [each.fault is None for each in answered]
        return cls(
            {name: proportion(sum(values), len(values)) for name, values in by_category.items()},
            proportion(sum(right), len(right)),
            macro_mean(list(by_category.values())),
            dict(Counter(str(each.fault) for each in answered if each.fault is not None).most_common()),
            sum(not each.ended for each in answered),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "categories": {name: each.to_json() for name, each in self.categories.items()},
            "overall": self.overall.to_json(),
            "macro": self.macro.to_json(),
            "faults": dict(self.faults),
            "cut": self.cut,
        }


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[ToolQuestion],
    style: Style,
    *,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    constrained: bool = False,
    rendering: Rendering = PLAIN,
) -> list[Answered]:
    """A model's likeliest answer to each question, read and judged.

    Args:
        constrained: an answer can only be what the style's grammar has: at each step the likeliest of its tokens.
        rendering: how questions become text.

    Raises:
        ConfigError: constrained, and the package `llguidance` is missing.
        DataError: constrained, and a question's answers are not Python's.
        ModelError: constrained, and the tokenizer has no pieces of text.
    """
    guided = guides(model, tokenizer, questions, style) if constrained else None
    prompts = tokenize_prompts(
        [style.ask(question, tokenizer, rendering) for question in questions], tokenizer, rendering
    )
    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens, batch_size=batch_size)
    ends = ends_of(model, tokenizer)
    with Progress("answering", len(prompts), "questions") as progress:
        drawn = sample(model, prompts, sampling, ends=ends, guides=guided, advance=progress.advance)
    answered = []
    for question, prompt, [given] in zip(questions, prompts, drawn, strict=True):
        answer = text_after(tokenizer, prompt, given.content)
        answered.append(Answered(question, answer, question.fault(style.read(answer, question)), given.has_end))
    return answered


def guides(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[ToolQuestion], style: Style
) -> list[Callable[[], Guide]]:
    """For each question what makes the guide of its answer: hundreds of them at a time would be held for nothing."""
    grammars = Grammars(tokenizer, ends_of(model, tokenizer))
    return [partial(grammars.guide, style.grammar(question, tokenizer)) for question in questions]


def macro_mean(categories: Sequence[Sequence[bool]]) -> Estimate:
    """The mean of the categories' shares; its variance is that of independent shares, each with its own Wilson centre.

    The centre (Agresti and Coull 1998: two successes and two failures more) keeps a category of which all are right
    from counting as certain.
    """
    if not categories:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = sum(sum(each) / len(each) for each in categories) / len(categories)
    variance = 0.0
    for each in categories:
        centre = (sum(each) + 2) / (len(each) + 4)
        variance += centre * (1 - centre) / (len(each) + 4)
    half = 1.959964 * math.sqrt(variance) / len(categories)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), sum(map(len, categories)))


def write_answers(answered: Sequence[Answered], file: Path) -> None:
    """JSON lines of id, category, answer, what is wrong with it, and whether the model ended it."""
    rows = (
        {
            "id": each.question.id,
            "category": each.question.category,
            "answer": each.answer,
            "fault": each.fault and str(each.fault),
            "ended": each.ended,
        }
        for each in answered
    )
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
