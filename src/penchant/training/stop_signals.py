"""Signals that end a run after the step in progress: Ctrl-C, SIGTERM and SIGHUP."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(Exception):
    """A signal ended the run; the step was finished and the run saved.

    Args:
        number: number of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopSignals:
    """A context in which a stop signal is recorded instead of ending the process.

    A second Ctrl-C interrupts at once. After any other signal the process exits without saving once the grace period
    is over: from another thread, because the main one may be waiting for a process that has ended.

    Attributes:
        signal_number: number of the first signal; None before.

    Args:
        resume_command: what to type to resume the run, for messages.
        grace: seconds.
    """

    def __init__(self, resume_command: str, grace: float) -> None:
        self._resume_command, self._grace = resume_command, grace
        self.signal_number: int | None = None
        self._timer: threading.Timer | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in STOP_SIGNALS:
            handler = signal.getsignal(number)
            # A hang-up stays ignored under nohup.
            if number == signal.SIGINT or handler is not signal.SIG_IGN:
                self._handlers[number] = handler
                signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, self._handlers[number])
        elif self._timer is None:
            self._timer = threading.Timer(self._grace, self._leave, [number])
            self._timer.daemon = True
            self._timer.start()
        if self.signal_number is None:
            self.signal_number = number

    def _leave(self, number: int) -> None:
        print(
            f"error: {signal.Signals(number).name}: the step was not finished and saved within "
            f"training.grace_seconds ({self._grace:g} s), so this process exits without saving; resume from the last "
            f"checkpoint with: {self._resume_command}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + number)
