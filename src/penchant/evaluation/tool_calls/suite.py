"""A model's calls: how many are right, by category, and what an answer costs on this machine."""

from __future__ import annotations

import json
import math
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

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
class Edge:
    """What answers cost, one at a time.

    Attributes:
        seconds: of an answer, the median and the 95th percentile.
        tokens_per_second: of what was written, reading the prompt included.
        peak_bytes: the process's or the accelerator's most so far.
        weight_bytes: of the model's parameters and buffers, as they would be saved.
        timed: answers.
    """

    seconds: tuple[float, float]
    tokens_per_second: float
    peak_bytes: int
    weight_bytes: int
    timed: int

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "seconds": {"median": self.seconds[0], "p95": self.seconds[1]}}


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
) -> list[Answered]:
    """A model's likeliest answer to each question, read and judged.

    Args:
        constrained: an answer can only be what the style's grammar has: at each step the likeliest of its tokens.

    Raises:
        ConfigError: constrained, and the package `llguidance` is missing.
        DataError: constrained, and a question's answers are not Python's.
        ModelError: constrained, and the tokenizer has no pieces of text.
    """
    guides = _guides(model, tokenizer, questions, style) if constrained else None
    prompts = tokenize_prompts([style.ask(each, tokenizer) for each in questions], tokenizer)
    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens, batch_size=batch_size)
    ends = ends_of(model, tokenizer)
    with Progress("answering", len(prompts), "questions") as progress:
        drawn = sample(model, prompts, sampling, ends=ends, guides=guides, advance=progress.advance)
    answered = []
    for question, prompt, [given] in zip(questions, prompts, drawn, strict=True):
        answer = text_after(tokenizer, prompt, given.ids.tolist())
        answered.append(Answered(question, answer, question.fault(style.read(answer, question)), given.ended))
    return answered


def measure_edge(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[ToolQuestion],
    style: Style,
    *,
    max_new_tokens: int = 256,
    constrained: bool = False,
) -> Edge:
    """Answer questions one at a time, by the clock; the first, which warms up, is not counted.

    Args:
        constrained: as in `answer_questions`; making each question's grammar counts.

    Raises:
        PenchantError: as `answer_questions`.
    """
    import torch

    guides = _guides(model, tokenizer, questions, style) if constrained else None
    prompts = tokenize_prompts([style.ask(each, tokenizer) for each in questions], tokenizer)
    sampling, ends = Sampling(temperature=0.0, max_new_tokens=max_new_tokens), ends_of(model, tokenizer)
    seconds, tokens = [], []
    for number in (0, *range(len(prompts))):
        own = None if guides is None else [guides[number]]
        start = time.perf_counter()
        [[drawn]] = sample(model, [prompts[number]], sampling, ends=ends, guides=own)
        seconds.append(time.perf_counter() - start)
        tokens.append(len(drawn.ids))
    seconds, tokens = seconds[1:], tokens[1:]
    # The kernel counts in KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if model.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(model.device)
    weights = _Length()
    torch.save(model.state_dict(), cast("IO[bytes]", weights))
    middle, late = np.quantile(seconds, (0.5, 0.95))
    return Edge((float(middle), float(late)), sum(tokens) / sum(seconds), peak, weights.bytes, len(seconds))


def _guides(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[ToolQuestion], style: Style
) -> list[Callable[[], Guide]]:
    """For each question what makes the guide of its answer: hundreds of them at a time would be held for nothing."""
    grammars = Grammars(tokenizer, ends_of(model, tokenizer))
    return [partial(grammars.guide, style.grammar(question, tokenizer)) for question in questions]


class _Length:
    """Counts what is written to it; quantised weights are no parameters that could be asked for their size."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        pass


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
