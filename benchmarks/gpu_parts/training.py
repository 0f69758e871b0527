"""Runs of `penchant train`: time, memory, launches and waits of a step, by token budget; large models by LoRA."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import torch
from bound import step_flops
from measuring import Recorder, Task
from penchant_side import train_and_record
from workloads import Workload, llama_config, make_model, save_tokenizer, tokens_by_candidate, write_data

from gpu_parts.setting import Figures, Item, Setting

if TYPE_CHECKING:
    from penchant.training.loop import Loop

Budget = int | Literal["auto"]

PAIRS, GROUPS = "qwen_0.5b_pairs", "qwen_0.5b_k8"
LARGE = ("llama_8b_k8", "llama_8b_pairs")

TOP_KERNELS = 12
"""Number of kernels, by their time, that a profile lists."""


def budget_items(setting: Setting) -> Mapping[str, Item]:
    """Pairs and groups of eight at three token budgets."""
    budgets: tuple[Budget, ...] = ("auto", 8192, 16384)
    runs = [(name, budget) for budget in budgets for name in (PAIRS, GROUPS)]
    if setting.tiny:
        runs = [(PAIRS, 8), (GROUPS, "auto")]
    return {f"{name}, token budget {budget}": partial(run_by_budget, setting, name, budget) for name, budget in runs}


def run_by_budget(setting: Setting, name: str, budget: Budget) -> Figures:
    """A run of all weights, with a step that is watched for waits and one that is profiled."""
    workload = setting.workload(name)
    task = setting.task("penchant", workload, setting.workload_folder(workload))
    return profiled_run(setting, workload, replace(task, token_budget=budget))


def large_items(setting: Setting) -> Mapping[str, Item]:
    """LoRA of the shape of Llama-3.1-8B, whose weights are made on the card and never written."""
    names = LARGE[:1] if setting.tiny else LARGE
    return {f"{name}, LoRA": partial(run_large, setting, name) for name in names}


def run_large(setting: Setting, name: str) -> Figures:
    """A run by LoRA of a model without files, in fewer steps."""
    short = replace(setting, warmup=min(2, setting.warmup), steps=min(3, setting.steps))
    workload = short.workload(name)
    folder = short.work / f"{name}-data"
    write_data(workload, folder, short.warmup + short.steps + short.further_steps)
    model_folder = folder / "model"
    save_tokenizer(workload.shape.vocabulary, model_folder)
    config = llama_config(workload.shape)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(model_folder)
    (model_folder / "model.safetensors").touch()  # A folder without weights is refused.
    # Made where a run reads its weights: its plan of the memory comes before.
    with mock.patch("penchant.training.model.load_model", lambda source, dtype: make_model(workload).to(dtype).eval()):
        return profiled_run(short, workload, short.task("penchant_lora", workload, folder))


def profiled_run(setting: Setting, workload: Workload, task: Task) -> Figures:
    """Figures of a run with two further steps: one watched for waits of the host, one profiled."""
    waits: Figures = {}
    profile: Figures = {}
    figures = run(setting, workload, task, waits_counted(waits, setting), profiled(profile, setting))
    return {**figures, **waits, **profile}


def run(setting: Setting, workload: Workload, task: Task, *further_steps: Any) -> Figures:
    """Times, memory and losses of a run's counted steps, and of its start."""
    recorder, compilation = Recorder(task), list[float]()
    loops: list[Loop] = []
    with compilation_timed(compilation):
        start = time.perf_counter()
        train_and_record(task, recorder, further_steps, loops.append)
        run_seconds = time.perf_counter() - start
    counted_steps = recorder.steps[task.warmup :]
    seconds = [step["seconds"] for step in counted_steps]
    steps = setting.drawn_steps(Path(task.folder))[task.warmup :]
    tokens = sum(map(tokens_by_candidate, steps))
    flops = sum(step_flops(workload.shape, step, task.rank) for step in steps)
    figures: Figures = {
        "milliseconds": 1e3 * median(seconds),
        "least_milliseconds": 1e3 * min(seconds),
        "host_milliseconds": 1e3 * median(step["cpu_seconds"] for step in counted_steps),
        "tokens_per_second": tokens / sum(seconds),
        "teraflops": flops / sum(seconds) / 1e12,
        "peak_mb": recorder.peak,
        "token_budget": loops[0].budget,
        "compiled": is_compiled(loops[0].scorer),
        "first_step_seconds": recorder.steps[0]["seconds"],
        "run_seconds": run_seconds,
        "losses": [step["loss"] for step in recorder.steps],
        "seconds": [step["seconds"] for step in recorder.steps],
        "steps_tokens": [step["tokens"] for step in recorder.steps],
    }
    if compilation:
        figures["compile_seconds"] = sum(compilation)
    if (rate := setting.matrix_rate()) is not None:
        figures["share_of_matrix_rate"] = flops / sum(seconds) / rate
    if setting.device == "cuda":
        figures["reserved_mb"] = torch.cuda.max_memory_reserved() / 2**20
    return figures


def is_compiled(scorer: torch.nn.Module) -> bool:
    """Whether a scorer's layers run compiled; a run goes on without where they cannot."""
    from penchant.engine.kernels.compiled import decoder_layers

    return all(layer._compiled_call_impl is not None for layer in decoder_layers(scorer))


@contextmanager
def compilation_timed(seconds: list[float]) -> Iterator[None]:
    """Record how long the compilation of layers and its check take, where a run compiles."""
    from penchant.training import model

    compile_and_check: Callable[..., Any] = model.compile_scorer

    def compile_scorer(*arguments: Any) -> Any:
        start = time.perf_counter()
        notice = compile_and_check(*arguments)
        seconds.append(time.perf_counter() - start)
        return notice

    with mock.patch.object(model, "compile_scorer", compile_scorer):
        yield


@contextmanager
def waits_counted(figures: Figures, setting: Setting) -> Iterator[None]:
    """Count the operations of a step that wait for the card, by torch's own warnings; `waits_at` are their lines."""
    if setting.device == "cpu":
        figures |= {"waits": 0, "waits_at": {}}
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [x for x in caught if "synchronizing" in str(x.message)]
    lines = [f"{Path(x.filename).name}:{x.lineno}" for x in waits]
    figures |= {"waits": len(waits), "waits_at": {line: lines.count(line) for line in sorted(set(lines))}}


@contextmanager
def profiled(figures: Figures, setting: Setting) -> Iterator[None]:
    """Count a step's launches and the card's time by kernel, on a CPU its operators; the profiler slows the host."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if setting.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        yield
        if setting.device == "cuda":
            torch.cuda.synchronize()
    events = [
        event
        for event in profile.events()
        if event.device_type.name == setting.device.upper() and not getattr(event, "is_user_annotation", False)
    ]
    milliseconds: Counter[str] = Counter()
    for event in events:
        milliseconds[event.name] += (
            event.time_range.elapsed_us() if setting.device == "cuda" else event.self_cpu_time_total
        ) / 1e3
    counts = Counter(event.name for event in events)
    copies = sum(count for name, count in counts.items() if name.startswith(("Memcpy", "Memset")))
    figures |= {
        "launches": len(events) - copies,
        "copies": copies,
        "busy_milliseconds": sum(milliseconds.values()),
        "top_kernels": {
            name[:90]: f"{counts[name]} times, {duration:.3f} ms"
            for name, duration in milliseconds.most_common(TOP_KERNELS)
        },
    }
