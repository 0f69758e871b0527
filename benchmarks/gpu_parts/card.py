"""The card, and the rates that bound a step: copies, launches, matrix products."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping

import torch
from matmul_side import SIZES, TINY_SIZES, best_rate
from measuring import library_versions, machine

from gpu_parts.setting import Figures, Item, Setting


def card_items(setting: Setting) -> Mapping[str, Item]:
    """What the machine is, and its rates."""
    return {
        "machine": lambda: describe(setting),
        "copies": lambda: copy_rates(setting),
        "matrix products": lambda: matrix_rates(setting),
    }


def describe(setting: Setting) -> Figures:
    """Names, sizes and versions."""
    facts = {**machine(setting.device), **library_versions(), "system": platform.platform()}
    if setting.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        facts |= {"capability": f"{card.major}.{card.minor}", "multiprocessors": card.multi_processor_count}
        facts |= {"free_gib": free / 2**30, "total_gib": total / 2**30, "cuda": torch.version.cuda}
    return facts


def copy_rates(setting: Setting) -> Figures:
    """Gigabytes a second inside the card (read and written) and to it from pinned memory; time of a small launch."""
    on_card = setting.device == "cuda"
    numbers = 2**20 if setting.tiny else 2**28
    source = torch.ones(numbers, device=setting.device)
    target, host = torch.empty_like(source), torch.ones(numbers, pin_memory=on_card)
    small = torch.ones(8, device=setting.device)
    launches = 100

    def launch() -> None:
        for _ in range(launches):
            small.add_(1)

    seconds = {
        "inside": least_seconds(lambda: target.copy_(source), setting),
        "to_card": least_seconds(lambda: target.copy_(host, non_blocking=True), setting),
        "launches": least_seconds(launch, setting),
    }
    size = 4 * numbers / 1e9
    return {
        "inside_gb_per_second": 2 * size / seconds["inside"],
        "to_card_gb_per_second": size / seconds["to_card"],
        "launch_microseconds": 1e6 * seconds["launches"] / launches,
    }


def matrix_rates(setting: Setting) -> Figures:
    """Teraflops of the fastest square products, by dtype; float32 also in TF32."""
    sizes, seconds = (TINY_SIZES, 0.02) if setting.tiny else (SIZES[setting.device], 0.5)
    figures: Figures = {}
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "highest"),
        ("tf32", torch.float32, "high"),
        ("float32", torch.float32, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        figures[f"{name}_teraflops"] = best_rate(sizes, dtype, setting.device, seconds) / 1e12
    return figures


def least_seconds(run: Callable[[], object], setting: Setting, repeats: int = 10) -> float:
    """The least time of several runs, after two that are not counted."""
    smallest = float("inf")
    for repeat in range(repeats + 2):
        start = time.perf_counter()
        run()
        if setting.device == "cuda":
            torch.cuda.synchronize()
        if repeat >= 2:
            smallest = min(smallest, time.perf_counter() - start)
    return smallest
