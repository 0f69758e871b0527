"""Latency, throughput and memory of a model's answers on this machine, one answer at a time, in a subprocess."""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import numpy as np

from penchant.data.rendering import PLAIN, Rendering
from penchant.data.tokenization import tokenize_prompts
from penchant.engine.sampling import Sampling, sample
from penchant.errors import ConfigError, PenchantError, TrainingError
from penchant.evaluation.answering import ends_of
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.styles import STYLES, Style
from penchant.evaluation.tool_calls.suite import guide_factories

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def quantize_int8(model: PreTrainedModel) -> PreTrainedModel:
    """The model with int8 weights in its linear layers, whose inputs are quantised dynamically; changed in place.

    Raises:
        ConfigError: this PyTorch no longer has dynamic quantisation.
    """
    import torch

    try:
        quantise = torch.ao.quantization.quantize_dynamic
    except AttributeError as error:
        raise ConfigError(
            f"torch {torch.__version__} has no dynamic quantisation", fix="use a version of torch that has it"
        ) from error
    with warnings.catch_warnings():
        # PyTorch means to move it to a library of its own, whose layers are slow on a CPU unless compiled.
        warnings.simplefilter("ignore")
        quantised: PreTrainedModel = quantise(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
    return quantised


STATUS_FILE, CLEAR_REFS_FILE = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def current_bytes(device: torch.device) -> int:
    """Bytes in use now: resident on the CPU, allocated on an accelerator.

    Systems other than Linux do not report resident memory; there it is the peak since the process began.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.memory_allocated(device)
    return _from_status("VmRSS") or _process_peak_bytes()


def peak_bytes(device: torch.device) -> int:
    """Peak of bytes in use since `reset_peak`; since the process began on systems other than Linux.

    On Linux it is not ru_maxrss, which a process inherits from the process that started it.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return _from_status("VmHWM") or _process_peak_bytes()


def reset_peak(device: torch.device) -> None:
    """Return freed memory to the system, and reset the peak of `peak_bytes` where the system allows it."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, TypeError, AttributeError):
        # glibc keeps freed memory that lies between used blocks resident until it is told to trim.
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        CLEAR_REFS_FILE.write_text("5", encoding="ascii")


def _from_status(name: str) -> int | None:
    """The bytes of a field of /proc/self/status; None on systems without the file or the field."""
    try:
        lines = STATUS_FILE.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    line_of_field = next((line for line in lines if line.startswith(f"{name}:")), None)
    return None if line_of_field is None else int(line_of_field.split()[1]) * 1024


def _process_peak_bytes() -> int:
    from penchant.engine.memory import peak_process_bytes

    return peak_process_bytes()


T = TypeVar("T")

# `python -m` would search the working folder for modules before the libraries' folders, and multiprocessing would run
# a user's script a second time: the subprocess starts with `-c` instead.
START = (
    "import sys; sys.path[:] = {path!r}; "
    "from penchant.evaluation.tool_calls.latency import run_requested_call; run_requested_call()"
)


def run_in_subprocess(function: Callable[..., T], *arguments: object) -> T:
    """The function's return value, computed in a fresh process that ends when this process ends, even by SIGKILL.

    The output of the process is hidden; if it fails, the error shows what it printed.

    Args:
        function: a function of a module, not of a script. The function, its arguments and its return value are
            pickled.

    Raises:
        PenchantError: the function raised it, or a signal ended the process, as where memory runs out.
        RuntimeError: the function raised any other error; the message holds its traceback.
    """
    with tempfile.TemporaryFile() as stderr_file:
        command = [sys.executable, "-c", START.format(path=sys.path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr_file) as process:
            request_pipe, result_pipe = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
            try:
                pickle.dump((function, arguments), request_pipe)
                request_pipe.flush()
                payload = result_pipe.read()
                code = process.wait()
            except BrokenPipeError:
                with suppress(BrokenPipeError):
                    request_pipe.close()
                payload, code = b"", process.wait()
            finally:
                process.kill()
        if code < 0:
            raise TrainingError(
                f"a process that measures a model was ended by {signal.Signals(-code).name}",
                fix="look whether the machine has enough free memory for the model, and start again",
            )
        if code or not payload:
            stderr_file.seek(0)
            raise RuntimeError(f"the subprocess failed:\n{stderr_file.read().decode(errors='replace')}")
    result = pickle.loads(payload)
    if isinstance(result, PenchantError):
        raise result
    return cast(T, result)


def run_requested_call() -> None:
    """Run in the subprocess: read the function and its arguments from stdin, and write its result to stdout."""
    result_pipe = os.fdopen(os.dup(1), "wb")
    # What the function prints must not mix with the pickled result.
    os.dup2(2, 1)
    function, arguments = pickle.load(os.fdopen(os.dup(0), "rb"))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        result = function(*arguments)
    except PenchantError as error:
        result = error
    with result_pipe:
        pickle.dump(result, result_pipe)


def _end_with_parent() -> None:
    """End this process when the parent's end of the pipe closes, which also happens after SIGKILL."""
    os.read(0, 1)
    os._exit(1)


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

    from penchant.models.loading import load_model, load_tokenizer

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
    prompts = tokenize_prompts([style.ask(question) for question in questions], tokenizer, setting.rendering)
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
