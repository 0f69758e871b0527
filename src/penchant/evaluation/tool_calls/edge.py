"""Latency, throughput and memory of a model's answers on this machine, one answer at a time, in a subprocess."""

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
from penchant.evaluation.tool_calls.alone import run_in_subprocess
from penchant.evaluation.tool_calls.memory import current_bytes, peak_bytes, reset_peak
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.styles import STYLES, Style
from penchant.evaluation.tool_calls.suite import guide_factories

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LatencyReport:
    """Latency, throughput and memory of answers, one at a time.

    Attributes:
        seconds: the median and the 95th percentile of the seconds an answer takes.
        tokens_per_second: generated tokens per second, prompt processing included in the time.
        peak_bytes: the peak of the process's memory while it answered: resident memory on the CPU, allocated memory on
            an accelerator.
        above_bytes: peak_bytes less the bytes that the process held before it loaded the model. Libraries that load
            with the first model count.
        weight_bytes: the size of the model's parameters and buffers in a saved file.
        timed: the number of answers.
    """

    seconds: tuple[float, float]
    tokens_per_second: float
    peak_bytes: int
    above_bytes: int
    weight_bytes: int
    timed: int

    def to_json(self) -> dict[str, Any]:
        """The report as JSON."""
        return {**vars(self), "seconds": {"median": self.seconds[0], "p95": self.seconds[1]}}


@dataclass(frozen=True)
class LatencySettings:
    """The settings of a model whose latency is measured.

    Attributes:
        model: the argument of `load_model`.
        style: a key of `STYLES`.
        device: PyTorch's name of the device.
        eight_bits: whether the weights are quantized to int8.
        max_new_tokens: the limit of an answer's length in tokens.
        constrained: as in `answer_questions`.
        chat_template: the argument of `load_tokenizer`.
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


def measure_latency(setting: LatencySettings, questions: Sequence[ToolQuestion]) -> LatencyReport:
    """Latency, throughput and memory of one answer to every question, in a fresh process with this one's threads.

    Raises:
        PenchantError: as `load_model`, `load_tokenizer` and `answer_questions`.
    """
    import torch

    # The memory of models that the caller no longer uses is free for this one.
    gc.collect()
    torch.cuda.empty_cache()
    return run_in_subprocess(measure_in_this_process, setting, tuple(questions), torch.get_num_threads())


def measure_in_this_process(setting: LatencySettings, questions: Sequence[ToolQuestion], threads: int) -> LatencyReport:
    """`measure_latency` in this process, whose other objects can take the memory that the model needs."""
    import torch

    from penchant.engine.loading import load_model, load_tokenizer
    from penchant.engine.quantization import quantize_int8

    torch.set_num_threads(threads)
    device, style = torch.device(setting.device), STYLES[setting.style]
    tokenizer = load_tokenizer(setting.model, chat_template=setting.chat_template)
    bytes_before = current_bytes(device)
    model = load_model(setting.model).to(device)
    if setting.eight_bits:
        model = quantize_int8(model)
    if device.type == "cpu":
        _copy_weights_from_file(model)
    reset_peak(device)
    seconds, tokens = time_answers(model, tokenizer, questions, style, setting)
    peak = peak_bytes(device)
    median, p95 = np.quantile(seconds, (0.5, 0.95))
    return LatencyReport(
        (float(median), float(p95)),
        sum(tokens) / sum(seconds),
        peak,
        max(0, peak - bytes_before),
        _weight_bytes(model),
        len(seconds),
    )


def time_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[ToolQuestion],
    style: Style,
    setting: LatencySettings,
) -> tuple[list[float], list[int]]:
    """The seconds and the token count of every answer, after one untimed answer to the first question as warm-up.

    The time covers prompt processing, generation and, if answers are constrained, the compilation of the question's
    grammar. Rendering prompts and grammars as text and tokenizing prompts happens before and is not timed.
    """
    guided = guide_factories(model, tokenizer, questions, style) if setting.constrained else None
    rendering = setting.rendering
    prompts = tokenize_prompts(
        [style.ask(question, tokenizer, rendering) for question in questions], tokenizer, rendering
    )
    sampling, ends = Sampling(temperature=0.0, max_new_tokens=setting.max_new_tokens), ends_of(model, tokenizer)
    seconds, tokens = [], []
    for number in (0, *range(len(prompts))):
        answer_guides = None if guided is None else [guided[number]]
        start = time.perf_counter()
        [[completion]] = sample(model, [prompts[number]], sampling, ends=ends, guides=answer_guides)
        seconds.append(time.perf_counter() - start)
        tokens.append(len(completion.ids))
    return seconds[1:], tokens[1:]


def _copy_weights_from_file(model: torch.nn.Module) -> None:
    """Copy every weight into its own memory: memory-mapped weights keep the whole file resident while one is used."""
    for weight in (*model.parameters(), *model.buffers()):
        weight.data = weight.data.clone()


def _weight_bytes(model: torch.nn.Module) -> int:
    import torch

    weights = _ByteCounter()
    torch.save(model.state_dict(), cast("IO[bytes]", weights))
    return weights.bytes


class _ByteCounter:
    """A file that counts the bytes written to it; quantized weights are no parameters whose size could be summed."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        pass
