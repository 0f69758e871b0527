"""Runs of `penchant train`: time, memory, launches and waits of a step, by token budget; large models by LoRA."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from bound import step_flops
from measuring import Recorder, Task
from penchant_side import train_and_record
from workloads import Workload, make_model, save_tokenizer, tokens_by_candidate, write_data

from gpu_parts.setting import Figures, Item, Setting

Budget = int | Literal["auto"]

PAIRS, GROUPS = "qwen_0.5b_pairs", "qwen_0.5b_k8"
LARGE = ("llama_8b_k8", "llama_8b_pairs")

TOP_KERNELS = 12
"""Number of kernels, by their time, that a profile lists."""


def budget_items(setting: Setting) -> Mapping[str, Item]:
    """Pairs and groups of eight at three token budgets."""
    budgets: tuple[Budget, ...] = ("auto", 8, 16) if setting.tiny else ("auto", 8192, 16384)
    return {
        f"{name}, token budget {budget}": lambda name=name, budget=budget: run_by_budget(setting, name, budget)
        for budget in budgets
        for name in (PAIRS, GROUPS)
    }


def run_by_budget(setting: Setting, name: str, budget: Budget) -> Figures:
    """A run of all weights, with a step that is watched for waits and one that is profiled."""
    workload = setting.workload(name)
    task = setting.task("penchant", workload, setting.built(workload))
    return profiled_run(setting, workload, replace(task, token_budget=budget))


def large_items(setting: Setting) -> Mapping[str, Item]:
    """LoRA of the shape of Llama-3.1-8B, whose weights are made on the card and never written."""
    return {f"{name}, LoRA": lambda name=name: run_large(setting, name) for name in LARGE}


def run_large(setting: Setting, name: str) -> Figures:
    """A run by LoRA of a model without files, in fewer steps."""
    short = replace(setting, warmup=min(2, setting.warmup), steps=min(3, setting.steps))
    workload = short.workload(name)
    folder = short.work / f"{name}-data"
    write_data(workload, folder, short.warmup + short.steps + short.further_steps)
    model_folder = folder / "model"
    save_tokenizer(workload.shape.vocabulary, model_folder)
    model = make_model(workload)
    model.config.save_pretrained(model_folder)
    (model_folder / "model.safetensors").touch()  # A folder without weights is refused.
    with mock.patch("penchant.training.model.load_model", lambda source, dtype: model.to(dtype).eval()):
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
    budgets: list[int] = []
    with compilation_timed(compilation):
        start = time.perf_counter()
        train_and_record(task, recorder, further_steps, lambda loop: budgets.append(loop.budget))
        whole = time.perf_counter() - start
    counted = recorder.steps[task.warmup :]
    seconds = [step["seconds"] for step in counted]
    steps = setting.drawn_steps(Path(task.folder))[task.warmup :]
    tokens = sum(map(tokens_by_candidate, steps))
    flops = sum(step_flops(workload.shape, step, task.rank) for step in steps)
    figures: Figures = {
        "milliseconds": 1e3 * statistics.median(seconds),
        "least_milliseconds": 1e3 * min(seconds),
        "host_milliseconds": 1e3 * statistics.median(step["cpu_seconds"] for step in counted),
        "tokens_per_second": tokens / sum(seconds),
        "teraflops": flops / sum(seconds) / 1e12,
        "peak_mb": recorder.peak,
        "token_budget": budgets[0],
        "first_step_seconds": recorder.steps[0]["seconds"],
        "run_seconds": whole,
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


@contextmanager
def compilation_timed(seconds: list[float]) -> Iterator[None]:
    """Record how long the compilation of layers and its check take, where a run compiles."""
    from penchant.training import model

    whole: Callable[..., Any] = model.compile_scorer

    def compile_scorer(*arguments: Any) -> Any:
        start = time.perf_counter()
        notice = whole(*arguments)
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
    kind = torch.autograd.DeviceType.CUDA if setting.device == "cuda" else torch.autograd.DeviceType.CPU
    events = [
        event
        for event in profile.events()
        if event.device_type == kind and not getattr(event, "is_user_annotation", False)
    ]
    milliseconds: dict[str, float] = {}
    for event in events:
        spent = event.self_device_time_total if setting.device == "cuda" else event.self_cpu_time_total
        milliseconds[event.name] = milliseconds.get(event.name, 0.0) + spent / 1e3
    copies = sum(event.name.startswith(("Memcpy", "Memset")) for event in events)
    counts = {name: sum(event.name == name for event in events) for name in milliseconds}
    longest = sorted(milliseconds, key=lambda name: -milliseconds[name])[:TOP_KERNELS]
    figures |= {
        "launches": len(events) - copies,
        "copies": copies,
        "busy_milliseconds": sum(milliseconds.values()),
        "top_kernels": {name[:90]: [counts[name], round(milliseconds[name], 3)] for name in longest},
    }
