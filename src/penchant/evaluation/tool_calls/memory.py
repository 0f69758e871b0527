"""Current and peak memory of this process."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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
