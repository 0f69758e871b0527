"""The processes of a run: their devices, their shares of the work, and sums and values over all of them.

Started by ``torchrun``, a run is sharded with FSDP2 over all its processes; otherwise its world has one process, and
every call here is the identity.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from penchant.engine.device import local_device
from penchant.engine.kernels.compiled import decoder_layers
from penchant.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
"""Device type -> torch's backend of collectives."""


@dataclass(frozen=True)
class World:
    """This process's rank among the run's processes, and its device."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def single(cls) -> World:
        """The world of one process, on this process's device."""
        return cls(0, 1, local_device())

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """This rank's part of `items`, every size-th, as pairs of an item and whether this rank counts it.

        All ranks get equally many: where items do not divide evenly some ranks get the last item again, uncounted,
        since all ranks must take a sharded forward together.
        """
        turns = range(0, len(items), self.size)
        indices = [start + self.rank for start in turns]
        return [(items[min(i, len(items) - 1)], i < len(items)) for i in indices]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks of values of any shape, in place; in float64 counts and totals are exact."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """The main rank's value, on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


def is_main_process() -> bool:
    """Whether this process writes and prints, without a `World`: before it is made, or after."""
    return os.environ.get("RANK", "0") == "0"


def is_single_process() -> bool:
    """Whether the run was started as one process."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def init_process_group(timeout: float = 1800) -> World:
    """The world of the processes that ``torchrun`` started, joined; otherwise a world of one.

    Args:
        timeout: seconds that a process may keep the others waiting; `RankMonitor` names it then, so collectives wait
            a minute more.

    Raises:
        ConfigError: there are several processes, and their device has no collectives.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = local_device()
    if size > 1 and device.type not in BACKENDS:
        raise ConfigError(
            f"{size} processes cannot share the device {device.type}",
            where="device",
            fix="device=cpu, or start it without torchrun",
        )
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group(BACKENDS[device.type], timeout=timedelta(seconds=timeout + 60))
    return World(rank, size, device)


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Treat numbers below 1e-38 as zero on this process's CPU inside the context.

    Where a loss is saturated its gradients are such numbers, and matrix products of them are 15 to 100 times slower. It
    affects only threads that start later, so it is entered before the first product.
    """
    was_flushing = not bool((torch.full((1,), 1e-39) * 1.0).item())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushing)


def destroy_process_group(world: World) -> None:
    """Leave the process group. Model and optimizer are freed before: sharded tensors alive at exit can abort gloo."""
    gc.collect()
    if world.size > 1:
        dist.barrier()
        dist.destroy_process_group()


def shard(scorer: nn.Module, world: World) -> None:
    """Shard a scorer in place over all ranks, layer by layer; a world of one leaves it unchanged."""
    if world.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    layers = decoder_layers(scorer)
    if not layers:
        logger.warning("no layers with attention are in the model: every process gathers all of its weights at once")
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(scorer, mesh=mesh)


def reshard(scorer: nn.Module) -> None:
    """Free the gathered weights that a forward without a backward leaves behind.

    Until then the root's parameters are the gathered ones, and an optimizer or a checkpoint would take those.
    """
    from torch.distributed.fsdp import FSDPModule

    if isinstance(scorer, FSDPModule):
        scorer.reshard()


class RankMonitor:
    """Context that ends this process when another has not answered for some time; a world of one has no monitor.

    Args:
        seconds: how long a process may not answer.
    """

    def __init__(self, world: World, seconds: float) -> None:
        self._world, self._seconds = world, seconds
        self._interval = min(10.0, seconds / 10)
        self._stopping = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> RankMonitor:
        if self._world.size > 1:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()

    def _watch(self) -> None:
        try:
            store = self._connect()
            self._compare(store)
        except (RuntimeError, OSError) as error:
            if not self._stopping.is_set():
                self._leave(0, f"its store cannot be reached: {' '.join(str(error).split())[:200]}")

    def _connect(self) -> TCPStore:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=self._seconds))

    def _compare(self, store: TCPStore) -> None:
        """Write this process's state and read the others', until the run ends."""
        began = time.monotonic()
        last_states: dict[int, Any] = {}
        last_changes = dict.fromkeys(range(self._world.size), began)
        computing_since = waiting_since = began
        count = 0
        while not self._stopping.wait(self._interval):
            count += 1
            clock = time.monotonic()
            if self._is_waiting():
                computing_since = clock
            else:
                waiting_since = clock
            state = [count, clock - computing_since, os.getpid(), platform.node()]
            store.set(_key(self._world.rank), json.dumps(state))
            for rank in range(self._world.size):
                key = _key(rank)
                if rank == self._world.rank or not store.check([key]):
                    continue
                state = json.loads(store.get(key))
                if state != last_states.get(rank):
                    last_states[rank], last_changes[rank] = state, clock
                silence, (_, computing, pid, node) = clock - last_changes[rank], last_states[rank]
                if silence > self._seconds:
                    reason = f"it has not answered for {silence:.0f} s: it is stopped, or its machine is gone"
                    self._leave(rank, f"{reason} (process {pid} on {node})")
                if min(computing, clock - waiting_since) > self._seconds:
                    reason = f"the others have waited {clock - waiting_since:.0f} s for it: it hangs"
                    self._leave(rank, f"{reason} (process {pid} on {node})")

    def _is_waiting(self) -> bool:
        """Whether this process's main thread is in one of torch's collectives."""
        frame = sys._current_frames().get(self._main)
        while frame is not None:
            if "/torch/distributed/" in frame.f_code.co_filename.replace(os.sep, "/"):
                return True
            frame = frame.f_back
        return False

    def _leave(self, rank: int, reason: str) -> None:
        if self._stopping.is_set():
            return
        print(
            f"error: rank {rank} of {self._world.size}: {reason}; see training.rank_timeout_seconds",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def _key(rank: int) -> str:
    return f"penchant/rank-monitor/{rank}"
