"""What a model's answers cost on this machine, one at a time, in a process of its own."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from penchant.data.rendering import PLAIN, Rendering
from penchant.data.tokenization import tokenize_prompts
from penchant.engine.sampling import Sampling, sample
from penchant.evaluation.generation import ends_of
from penchant.evaluation.tool_calls.alone import alone
from penchant.evaluation.tool_calls.memory import forget, held, most_held
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.styles import STYLES, Style
from penchant.evaluation.tool_calls.suite import guides

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Edge:
    """What answers cost, one at a time.

    Attributes:
        seconds: of an answer, the median and the 95th percentile.
        tokens_per_second: of what was written, reading the prompt included.
        peak_bytes: the most that the process held while it answered, or of an accelerator's memory had allocated.
        above_bytes: how much of it lies above what the process held before it read the model. Libraries that load with
            the first model are in it.
        weight_bytes: of the model's parameters and buffers, as they would be saved.
        timed: answers.
    """

    seconds: tuple[float, float]
    tokens_per_second: float
    peak_bytes: int
    above_bytes: int
    weight_bytes: int
    timed: int

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "seconds": {"median": self.seconds[0], "p95": self.seconds[1]}}


@dataclass(frozen=True)
class Setting:
    """How a model is put to use.

    Attributes:
        model: as `load_model` takes it.
        style: a key of `STYLES`.
        device: as PyTorch calls it.
        eight_bits: whether its weights are made int8.
        constrained: as in `answer_questions`.
        chat_template: as `load_tokenizer` takes it.
        rendering: how questions become text.
    """

    model: str
    style: str
    device: str = "cpu"
    eight_bits: bool = False
    max_new_tokens: int = 256
    constrained: bool = False
    chat_template: str | None = None
    rendering: Rendering = PLAIN


def measure_edge(setting: Setting, questions: Sequence[ToolQuestion]) -> Edge:
    """Answer questions one at a time, by the clock, in a fresh process with as many threads as this one.

    Raises:
        PenchantError: as `load_model`, `load_tokenizer` and `answer_questions`.
    """
    import torch

    # Models that the caller has let go of leave room for this one.
    gc.collect()
    torch.cuda.empty_cache()
    return alone(measure_here, setting, tuple(questions), torch.get_num_threads())


def measure_here(setting: Setting, questions: Sequence[ToolQuestion], threads: int) -> Edge:
    """`measure_edge` in this process: what it held before is not told from the model."""
    import torch

    from penchant.engine.loading import load_model, load_tokenizer
    from penchant.engine.quantization import quantize_int8

    torch.set_num_threads(threads)
    device, style = torch.device(setting.device), STYLES[setting.style]
    tokenizer = load_tokenizer(setting.model, chat_template=setting.chat_template)
    before = held(device)
    model = load_model(setting.model).to(device)
    if setting.eight_bits:
        model = quantize_int8(model)
    if device.type == "cpu":
        _leave_the_file(model)
    forget(device)
    seconds, tokens = time_answers(model, tokenizer, questions, style, setting)
    peak = most_held(device)
    middle, late = np.quantile(seconds, (0.5, 0.95))
    return Edge(
        (float(middle), float(late)),
        sum(tokens) / sum(seconds),
        peak,
        max(0, peak - before),
        _weight_bytes(model),
        len(seconds),
    )


def time_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[ToolQuestion],
    style: Style,
    setting: Setting,
) -> tuple[list[float], list[int]]:
    """Seconds and tokens of each answer. The first question is answered once before, to warm up.

    The clock runs while a prompt's tokens are read and an answer's are written. Constrained, it also runs while the
    question's grammar is compiled; writing prompts and grammars as text, and cutting prompts in tokens, is done before.
    """
    guided = guides(model, tokenizer, questions, style) if setting.constrained else None
    rendering = setting.rendering
    prompts = tokenize_prompts(
        [style.ask(question, tokenizer, rendering) for question in questions], tokenizer, rendering
    )
    sampling, ends = Sampling(temperature=0.0, max_new_tokens=setting.max_new_tokens), ends_of(model, tokenizer)
    seconds, tokens = [], []
    for number in (0, *range(len(prompts))):
        own = None if guided is None else [guided[number]]
        start = time.perf_counter()
        [[drawn]] = sample(model, [prompts[number]], sampling, ends=ends, guides=own)
        seconds.append(time.perf_counter() - start)
        tokens.append(len(drawn.ids))
    return seconds[1:], tokens[1:]


def _leave_the_file(model: torch.nn.Module) -> None:
    """Copy weights into memory of their own: read from a file they are its pages, which stay while one is used."""
    for weight in (*model.parameters(), *model.buffers()):
        weight.data = weight.data.clone()


def _weight_bytes(model: torch.nn.Module) -> int:
    import torch

    weights = _Length()
    torch.save(model.state_dict(), cast("IO[bytes]", weights))
    return weights.bytes


class _Length:
    """Counts what is written to it; quantised weights are no parameters that could be asked for their size."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        pass
