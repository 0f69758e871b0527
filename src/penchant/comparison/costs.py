"""What training a cell took, and how its metrics went: read from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from penchant.engine.memory import peak_process_bytes
from penchant.evaluation.files import read_records


def reset_peak() -> None:
    """Begin to measure the most memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def cost_of(folder: Path) -> dict[str, float]:
    """Tokens trained on, seconds of training steps, and the most memory (on a CPU, of the process: it never falls)."""
    trained = [line for line in _lines(folder, "metrics.jsonl") if "num_tokens" in line]
    steps = _lines(folder, "timing.jsonl")
    peak = peak_process_bytes() / 2**20
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    each = steps[-1]["seconds"] if steps else 0.0
    mean = sum(line["seconds"] for line in steps) / len(steps) if steps else each
    done = trained[-1]["step"] if trained else 0
    return {
        "tokens": float(trained[-1]["num_tokens"]) if trained else 0.0,
        "seconds": mean * done,
        "peak_memory_mb": peak,
    }


def curves_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of what is drawn."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in _lines(folder, "metrics.jsonl"):
        for name in ("loss", "rewards/margins", "rewards/accuracies", "eval_loss", "eval_rewards/accuracies"):
            if name in line:
                curves.setdefault(name, []).append((line["step"], line[name]))
    return curves


def _lines(folder: Path, name: str) -> list[dict[str, Any]]:
    file = folder / name
    return read_records(file, f"delete {folder}: the cell is trained again") if file.exists() else []
