"""A model's calls: how many are right, by category, and what an answer costs on this machine."""

from __future__ import annotations

import json
import math
import resource
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from penchant.data.tokenization import tokenize_prompts
from penchant.engine.progress import Progress
from penchant.engine.sampling import Sampling, sample
from penchant.evaluation.files import write_atomically
from penchant.evaluation.generation import ends_of, generate
from penchant.evaluation.statistics import Estimate, proportion
from penchant.evaluation.tool_calls.calls import Fault
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.styles import Style

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answered:
    """A question, a model's answer, and what is wrong with it."""

    question: ToolQuestion
    answer: str
    fault: Fault | None


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
    """

    categories: Mapping[str, Estimate]
    overall: Estimate
    macro: Estimate
    faults: Mapping[str, int]

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
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "categories": {name: each.to_json() for name, each in self.categories.items()},
            "overall": self.overall.to_json(),
            "macro": self.macro.to_json(),
            "faults": dict(self.faults),
        }


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[ToolQuestion],
    style: Style,
    *,
    max_new_tokens: int = 256,
    batch_size: int = 32,
) -> list[Answered]:
    """A model's likeliest answer to each question, read and judged."""
    prompts = tokenize_prompts([style.ask(each, tokenizer) for each in questions], tokenizer)
    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens, batch_size=batch_size)
    with Progress("answering", len(prompts), "questions") as progress:
        answers = generate(model, tokenizer, prompts, sampling, advance=progress.advance)
    return [
        Answered(question, given[0], question.fault(style.read(given[0], question)))
        for question, given in zip(questions, answers, strict=True)
    ]


def measure_edge(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[ToolQuestion],
    style: Style,
    *,
    max_new_tokens: int = 256,
) -> Edge:
    """Answer questions one at a time, by the clock; the first, which warms up, is not counted."""
    import torch

    prompts = tokenize_prompts([style.ask(each, tokenizer) for each in questions], tokenizer)
    sampling, ends = Sampling(temperature=0.0, max_new_tokens=max_new_tokens), ends_of(model, tokenizer)
    seconds, tokens = [], []
    for prompt in prompts[:1] + prompts:
        start = time.perf_counter()
        [[drawn]] = sample(model, [prompt], sampling, ends=ends)
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
    """JSON lines of id, category, answer, and what is wrong with it."""
    rows = (
        {"id": e.question.id, "category": e.question.category, "answer": e.answer, "fault": e.fault and str(e.fault)}
        for e in answered
    )
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
