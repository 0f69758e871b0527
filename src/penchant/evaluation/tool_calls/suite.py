"""Answers to tool questions and the shares of right ones by category."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.data.rendering import PLAIN, Rendering
from penchant.data.tokenization import tokenize_prompts
from penchant.engine.grammars import Grammars
from penchant.engine.sampling import Guide, Sampling, sample
from penchant.evaluation.answering import ends_of, text_after
from penchant.evaluation.statistics import Estimate, proportion
from penchant.evaluation.tool_calls.calls import Fault
from penchant.evaluation.tool_calls.category_means import macro_mean
from penchant.evaluation.tool_calls.grammars import Tags
from penchant.evaluation.tool_calls.leaderboard import LeaderboardScore
from penchant.evaluation.tool_calls.multi_turn import MultiTurnQuestion
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.styles import Style
from penchant.progress import Progress
from penchant.storage.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class JudgedAnswer:
    """A question, a model's answer and its fault.

    Attributes:
        answer: the answer; of a question of several turns, the answers by turn.
        fault: the fault of the answer's calls; None if they are right.
        is_complete: whether the model ended the answer; if not, the token limit cut it and the rest was judged.
    """

    question: ToolQuestion | MultiTurnQuestion
    answer: str | tuple[tuple[str, ...], ...]
    fault: Fault | None
    is_complete: bool = True


@dataclass(frozen=True)
class ToolReport:
    """Shares of right answers.

    Attributes:
        categories: the share by category.
        overall: the share over all questions.
        macro: the mean of the categories' shares, equally weighted.
        leaderboard: the leaderboard's overall score; None if none of its categories was measured.
        faults: the number of wrong answers by fault.
        truncated: the number of answers that the token limit cut, right or wrong.
    """

    categories: Mapping[str, Estimate]
    overall: Estimate
    macro: Estimate
    leaderboard: LeaderboardScore | None
    faults: Mapping[str, int]
    truncated: int

    @classmethod
    def from_answers(cls, answers: Sequence[JudgedAnswer]) -> ToolReport:
        """The report on judged answers."""
        by_category: dict[str, list[bool]] = {}
        for judged in answers:
            by_category.setdefault(judged.question.category, []).append(judged.fault is None)
        right = [judged.fault is None for judged in answers]
        return cls(
            {name: proportion(sum(values), len(values)) for name, values in by_category.items()},
            proportion(sum(right), len(right)),
            macro_mean(list(by_category.values())),
            LeaderboardScore.from_categories(by_category),
            dict(Counter(str(judged.fault) for judged in answers if judged.fault is not None).most_common()),
            sum(not judged.is_complete for judged in answers),
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "categories": {name: share.to_json() for name, share in self.categories.items()},
            "overall": self.overall.to_json(),
            "macro": self.macro.to_json(),
            "leaderboard": self.leaderboard and self.leaderboard.to_json(),
            "faults": dict(self.faults),
            "cut": self.truncated,
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
) -> list[JudgedAnswer]:
    """A model's greedy answer to every question, read and judged.

    Args:
        constrained: whether every token is the likeliest among those that the style's grammar allows.
        rendering: how questions become text.

    Raises:
        ConfigError: constrained, and the package `llguidance` is missing.
        DataError: constrained, and a question's calls are not in Python.
        ModelError: the tokenizer cannot write the style's prompts; or, constrained, does not give its tokens' texts.
    """
    guided = guide_factories(model, tokenizer, questions, style) if constrained else None
    style.check(tokenizer)
    prompts = tokenize_prompts([style.ask(question) for question in questions], tokenizer, rendering)
    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens, batch_size=batch_size)
    ends = ends_of(model, tokenizer)
    with Progress("answering", len(prompts), "questions") as progress:
        completions = sample(model, prompts, sampling, ends=ends, guides=guided, advance=progress.advance)
    judged_answers = []
    for question, prompt, [completion] in zip(questions, prompts, completions, strict=True):
        answer = text_after(tokenizer, prompt, completion.content)
        judged_answers.append(
            JudgedAnswer(question, answer, question.fault(style.read(answer, question)), completion.has_end)
        )
    return judged_answers


def guide_factories(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[ToolQuestion], style: Style
) -> list[Callable[[], Guide]]:
    """For every question a function that makes the guide of its answer, so that few guides are in memory at a time."""
    grammars, tags = Grammars(tokenizer, ends_of(model, tokenizer)), Tags.from_tokenizer(tokenizer)
    return [partial(grammars.guide, style.grammar(question, tags)) for question in questions]


def write_answers(answers: Sequence[JudgedAnswer], file: Path) -> None:
    """Write a JSON line per answer: id, category, answer, fault, and whether the model ended it."""
    rows = (
        {
            "id": judged.question.id,
            "category": judged.question.category,
            "answer": judged.answer,
            "fault": judged.fault and str(judged.fault),
            "ended": judged.is_complete,
        }
        for judged in answers
    )
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
