"""This machine's matrix rate, for the bound: python matmul_side.py TASK.json OUT.json

The best of several products of large square matrices, in the dtype, on the device and with the threads of the sides.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from measuring import Task, machine

SIZES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}
TINY_SIZES = (256, 512)
SECONDS = {"cpu": 3.0, "cuda": 1.0}
"""For each size: long enough that some products are not disturbed by what else the machine does."""


def best_rate(sizes: tuple[int, ...], dtype: torch.dtype, device: str, seconds: float) -> float:
    """Floating-point operations a second of the fastest product of any size."""
    best = 0.0
    for n in sizes:
        a, b = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)
        out = torch.empty(n, n, device=device, dtype=dtype)
        first_start = time.perf_counter()
        while time.perf_counter() - first_start < seconds:
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def main() -> None:
    task, out = Task.read(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(task.threads)
    # On a GPU, float32 products are left at full precision, as torch's default is.
    sizes, seconds = (TINY_SIZES, 0.1) if task.steps == 0 else (SIZES[task.device], SECONDS[task.device])
    rate = best_rate(sizes, getattr(torch, task.dtype), task.device, seconds)
    Path(out).write_text(json.dumps({"flops_per_second": rate, **machine(task.device)}))


if __name__ == "__main__":
    main()
