"""The smallest difference that a comparison's seeds and prompts can show, and the cost of training each cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from penchant.comparison.cells import variants
from penchant.comparison.config import START, Bench
from penchant.comparison.pair_values import first_of_prompt
from penchant.data.groups import PreferenceGroup
from penchant.engine.device import local_device
from penchant.engine.memory import peak_process_bytes
from penchant.evaluation.variance_components import Variances, detectable_difference
from penchant.storage.files import read_records


def reset_peak() -> None:
    """Reset the GPU's record of peak memory."""
    if local_device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def cost_of(folder: Path) -> dict[str, float]:
    """Trained tokens, seconds of training steps, and peak memory (on a CPU of the whole process: it never falls)."""
    trained = [line for line in _lines(folder, "metrics.jsonl") if "num_tokens" in line]
    steps = _lines(folder, "timing.jsonl")
    peak = peak_process_bytes() / 2**20
    if local_device().type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    last_seconds = steps[-1]["seconds"] if steps else 0.0
    mean = sum(line["seconds"] for line in steps) / len(steps) if steps else last_seconds
    last_step = trained[-1]["step"] if trained else 0
    return {
        "tokens": float(trained[-1]["num_tokens"]) if trained else 0.0,
        "seconds": mean * last_step,
        "peak_memory_mb": peak,
    }


def curves_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> (step, value) points of the training curves."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in _lines(folder, "metrics.jsonl"):
        for name in ("loss", "rewards/margins", "rewards/accuracies", "eval_loss", "eval_rewards/accuracies"):
            if name in line:
                curves.setdefault(name, []).append((line["step"], line[name]))
    return curves


def _lines(folder: Path, name: str) -> list[dict[str, Any]]:
    file = folder / name
    return read_records(file, f"delete {folder}: the cell is trained again") if file.exists() else []


_DIFFERING = Variances(seed=0.0, prompt=1 / 6, residual=1 / 6)
"""Variances of binary values where two models differ on a third of the prompts, half of that whatever the seed."""

_SHARES = ("accuracy", "top1", "win_rate")
"""Endings of metrics with binary values, for which a difference in points can be predicted."""


def design_notes(bench: Bench, held_out: Sequence[PreferenceGroup]) -> list[str]:
    """Notes on the smallest difference that the design can detect, and a warning on too few seeds."""
    return [*_smallest_difference(bench, held_out), *few_seeds(bench)]


def few_seeds(bench: Bench) -> list[str]:
    """A warning where there are too few seeds to estimate the variance between seeds."""
    if len(bench.seeds) > 2:
        return []
    fix = "use seeds: [0, 1, 2, 3, 4]"
    if len(bench.seeds) == 1:
        return [f"1 seed: no method can be called better or worse; {fix}"]
    return [f"2 seeds hardly show how seeds differ: only large differences can be detected; {fix}"]


def _smallest_difference(bench: Bench, held_out: Sequence[PreferenceGroup]) -> list[str]:
    if len(bench.seeds) < 2 or not bench.measure.primary.endswith(_SHARES):
        return []
    prompts = len(set(first_of_prompt(held_out).values()))
    if bench.measure.primary == "win_rate":
        prompts = min(prompts, bench.measure.samples)
    methods = len(variants(bench)) - (bench.baseline != START)
    if prompts < 2 or methods < 1:
        return []
    points = detectable_difference(_DIFFERING, len(bench.seeds), prompts, methods)
    size = f"with {len(bench.seeds)} seeds, {prompts:,} held-out prompts and {methods} method{'s' * (methods > 1)}"
    if points is None:
        return [f"{size} no difference in {bench.measure.primary} is likely to be detected: use more of them"]
    power = f"a difference of about {100 * points:.0f} points in {bench.measure.primary} is detected 8 times in 10"
    return [f"{size} {power}, where models differ on a third of the prompts and seeds change little"]
