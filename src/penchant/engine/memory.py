"""Memory that a computation takes, counted by running it on tensors without data; and memory that is available.

A fake tensor has a shape, a dtype and a device, and no numbers: the real model code runs on it, forward, backward and
optimizer step, and nothing is allocated but the count.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_DEVICE = torch.ops.prim.device.default
# None where a version of torch has no such operator.
_GROUPED_PRODUCT: Any = getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)

UNKNOWN_BYTES = 1 << 62
"""Memory of a machine that does not say how much it has."""


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of all tensors made while it is active: those alive now, and the most at any moment.

    A storage counts once, however many tensors share it, from the operation that makes it until nothing holds it any
    more: also tensors a custom autograd function keeps outside of `save_for_backward`, and temporary ones.

    Attributes:
        live: bytes of the tensors alive now.
        peak: most bytes alive at any moment since the start, or since `reset`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known_storages: weakref.WeakSet[Any] = weakref.WeakSet()

    def reset(self) -> None:
        """Start a new phase: the peak is what is alive."""
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:  # The most frequent call of all; it makes no tensor.
            return func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._known_storages.add(tensor.untyped_storage())  # A storage that is new here was made outside.
        result = (_grouped_product if func is _GROUPED_PRODUCT else func)(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        if storage in self._known_storages:
            return
        self._known_storages.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size


def _grouped_product(rows: Tensor, weights: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Experts' grouped product without data: torch knows its shape in bfloat16 only, though it computes others too."""
    rounded = (torch.empty_like(tensor, dtype=torch.bfloat16) for tensor in (rows, weights))
    return torch.empty_like(_GROUPED_PRODUCT(*rounded, *args, **kwargs), dtype=rows.dtype)


@contextmanager
def track_memory() -> Iterator[MemoryTracker]:
    """A tracker of all tensors made inside the context; they are fake tensors, without data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    tracker = MemoryTracker()
    with FakeTensorMode(), tracker:
        yield tracker


def replace_tensors(module: nn.Module, device: torch.device) -> None:
    """Put new tensors of the same shapes on the device in place of a module's own; ties between them are kept.

    Call it inside `track_memory` on a module built on the ``meta`` device, so that its weights count. `Module.to`
    cannot do this, and libraries that move modules do not take fake ones.
    """
    replacements: dict[int, Any] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in replacements:
                    replacements[id(parameter)] = nn.Parameter(_like(parameter, device), parameter.requires_grad)
                part._parameters[name] = replacements[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                if id(buffer) not in replacements:
                    replacements[id(buffer)] = _like(buffer, device)
                part._buffers[name] = replacements[id(buffer)]


def _like(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def process_bytes(device: torch.device) -> int:
    """Bytes of the device's memory that this process holds: resident on the CPU, reserved on a GPU; 0 where unknown."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):  # no /proc on macOS, no sysconf on Windows
        return int(getattr(_process_memory(), "rss", 0))


def peak_process_bytes() -> int:
    """Most bytes of the machine's memory that this process has held; 0 where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return int(getattr(_process_memory(), "peak_wset", 0))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _process_memory() -> object:
    """Memory figures by psutil, which accelerate installs; None without it."""
    try:
        import psutil
    except ImportError:
        return None
    return psutil.Process().memory_info()


def _machine_bytes() -> int:
    """Bytes of the machine's memory; `UNKNOWN_BYTES` where the system does not report it."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        import psutil
    except ImportError:
        return UNKNOWN_BYTES
    return int(psutil.virtual_memory().available)


def available_bytes(device: torch.device) -> int:
    """Bytes of the device's memory that this process could hold, including what it holds already.

    On the CPU the least of what the kernel calls available and of the container's limit.
    """
    process = process_bytes(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + process
    limits = [_machine_bytes()]
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        limits.append(int(lines["MemAvailable"].split()[0]) * 1024 + process)
    except (OSError, KeyError, ValueError):
        pass
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)
