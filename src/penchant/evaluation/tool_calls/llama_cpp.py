"""Answers of a GGUF file by llama.cpp, with its own latency and memory, one answer at a time, in a subprocess."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from penchant.data.tokenized import Ids
from penchant.errors import ModelError, require_extra
from penchant.evaluation.tool_calls.latency import (
    LatencyReport,
    current_bytes,
    peak_bytes,
    reset_peak,
    run_in_subprocess,
)

SPARE_TOKENS = 8
"""Tokens of the context beyond the longest prompt with its answer: llama.cpp stops short of a full context."""


@dataclass(frozen=True)
class LlamaCppAnswers:
    """Greedy answers by llama.cpp.

    Attributes:
        texts: the answer to every prompt, without end tokens.
        report: latency and memory; `weight_bytes` is the size of the file.
    """

    texts: tuple[str, ...]
    report: LatencyReport


def llama_cpp_library() -> ModuleType:
    """The package `xllamacpp`, imported when it is needed.

    Raises:
        ConfigError: it is missing.
    """
    with require_extra("llama-cpp", "llama.cpp's own answers need xllamacpp"):
        import xllamacpp
    return xllamacpp


def answer_with_llama_cpp(file: str, prompts: Sequence[Ids], max_new_tokens: int) -> LlamaCppAnswers:
    """The greedy answers of a GGUF file to tokenized prompts, by llama.cpp on the CPU with this process's threads.

    Raises:
        ConfigError: the package `xllamacpp` is missing.
        ModelError: llama.cpp cannot read the file.
    """
    import torch

    llama_cpp_library()
    ids = [prompt.tolist() for prompt in prompts]
    return run_in_subprocess(answer_in_this_process, file, ids, max_new_tokens, torch.get_num_threads())


def answer_in_this_process(
    file: str, prompts: Sequence[Sequence[int]], max_new_tokens: int, threads: int
) -> LlamaCppAnswers:
    """`answer_with_llama_cpp` in this process. The first prompt is answered once more before, as a warm-up."""
    import torch

    cpu, library = torch.device("cpu"), llama_cpp_library()
    parameters = library.CommonParams()
    parameters.model.path = file
    parameters.n_ctx = max(map(len, prompts)) + max_new_tokens + SPARE_TOKENS
    parameters.n_parallel, parameters.verbosity, parameters.n_gpu_layers = 1, 0, 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    bytes_before = current_bytes(cpu)
    try:
        server = library.Server(parameters)
    except Exception as error:  # The package's errors are bare exceptions.
        raise ModelError(f"llama.cpp cannot read the file: {error}", where=file) from error
    reset_peak(cpu)
    request = {"n_predict": max_new_tokens, "temperature": 0, "cache_prompt": False}
    seconds, tokens, texts = [], 0, []
    for number in (0, *range(len(prompts))):
        start = time.perf_counter()
        result = server.handle_completions({"prompt": list(prompts[number]), **request})
        seconds.append(time.perf_counter() - start)
        tokens += result["usage"]["completion_tokens"] if len(seconds) > 1 else 0
        texts.append(result["choices"][0]["text"])
    peak = peak_bytes(cpu)
    median, p95 = np.quantile(seconds[1:], (0.5, 0.95))
    report = LatencyReport(
        (float(median), float(p95)),
        tokens / sum(seconds[1:]),
        peak,
        max(0, peak - bytes_before),
        Path(file).stat().st_size,
        len(prompts),
    )
    return LlamaCppAnswers(tuple(texts[1:]), report)
