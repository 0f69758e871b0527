"""A monitor that names the process of a run that no longer answers, for which the others would wait in silence.

Every process has a thread that writes into the run's store, at short intervals, a counter and how long its main thread
has been computing without a collective. A process whose counter stands still is stopped, or its machine is gone; one
that computes while this one has waited for as long in a collective hangs.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from penchant.engine.distribution import World


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
