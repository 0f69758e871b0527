"""What this process holds, and the most it has held."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held(device: torch.device) -> int:
    """Bytes now: resident on the CPU, allocated on an accelerator.

    Where the system does not say what is resident (all but Linux), the most that was, as in `most_held`.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.memory_allocated(device)
    return _from_status("VmRSS") or _most_ever()


def most_held(device: torch.device) -> int:
    """Bytes at most since `forget`; where the system does not forget (all but Linux), since the process began.

    On Linux this is no ru_maxrss, which a process inherits from the one that started it.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return _from_status("VmHWM") or _most_ever()


def forget(device: torch.device) -> None:
    """Give back what was freed, and let `most_held` begin anew where the system allows it."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, TypeError, AttributeError):
        # Of glibc: the weights' memory lies between blocks that are still used, and stays resident else.
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        FORGET.write_text("5", encoding="ascii")


def _from_status(name: str) -> int | None:
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{name}:")), None)
    return None if found is None else int(found.split()[1]) * 1024


def _most_ever() -> int:
    from penchant.engine.memory import peak_process_bytes

    return peak_process_bytes()
