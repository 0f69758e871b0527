"""A question's programs in a process of their own, with limits on time and memory."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Timer
from types import TracebackType
from typing import IO, Any, cast

from penchant.evaluation.tool_calls.calls import Call, DueCall, Fault
from penchant.evaluation.tool_calls.program_process import OUT_OF_MEMORY, Invocation

# As in `latency`: `-c`, and this process's path.
START = "import sys; sys.path[:] = {path!r}; from penchant.evaluation.tool_calls.program_process import serve; serve()"

START_SECONDS = 600
"""Seconds that a process may take to import its programs, on a machine that is busy with others."""


@dataclass(frozen=True)
class Limits:
    """Limits of the process that runs one question's programs.

    Attributes:
        computing_seconds: seconds of computing in the whole conversation, however busy the machine is.
        seconds: seconds by the clock that the calls of one answer may take, for a program that waits.
        bytes_of_memory: size of the process's address space.
    """

    computing_seconds: int = 20
    seconds: float = 120
    bytes_of_memory: int = 2**30


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Scenario:
    """The programs of a question and their first states.

    Attributes:
        modules: the module of every class by the class's name, in the order of the question.
        states: the first state by class; a class without one has no state.
        long: whether the programs fill their state with long texts.
    """

    modules: Mapping[str, str]
    states: Mapping[str, Mapping[str, Any]]
    long: bool


class LimitError(Exception):
    """Calls took more time or memory than `Limits` allows, and the process was ended."""


class ProgramProcess:
    """A process that runs one question's programs; a context manager that ends it.

    Raises:
        RuntimeError: the programs cannot be imported or set up.
    """

    def __init__(self, scenario: Scenario, limits: Limits = DEFAULT_LIMITS) -> None:
        command = [sys.executable, "-c", START.format(path=sys.path)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        self._seconds = limits.seconds
        programs = [(module, name, scenario.states.get(name)) for name, module in scenario.modules.items()]
        self._send((programs, scenario.long, limits.computing_seconds, limits.bytes_of_memory))
        # The first request waits for the imports, which count for no answer.
        self._ask("execute", [], START_SECONDS)

    def __enter__(self) -> ProgramProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def execute(self, calls: Sequence[Call]) -> list[str]:
        """The results of an answer's calls, as texts; an error of a program is its result.

        Raises:
            LimitError: the calls took too long, or needed too much memory.
        """
        results: list[str] = self._ask("execute", [(call.name, (), dict(call.arguments)) for call in calls])
        return results

    def end_turn(self, due_calls: Sequence[DueCall]) -> Fault | None:
        """The fault of the calls since the last turn; None if they are right, or if none was due.

        Args:
            due_calls: the calls that are due in the turn.

        Raises:
            LimitError: as `execute`.
        """
        name = self._ask("end_turn", [(call.name, call.positional, dict(call.keywords)) for call in due_calls])
        return None if name is None else Fault[name]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(BrokenPipeError):
                cast("IO[bytes]", pipe).close()
        self._process.wait()

    def _ask(self, method: str, invocations: Sequence[Invocation], seconds: float | None = None) -> Any:
        timer = Timer(self._seconds if seconds is None else seconds, self._process.kill)
        timer.start()
        try:
            self._send((method, invocations))
            line = cast("IO[bytes]", self._process.stdout).readline()
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            return json.loads(line)
        code = self._process.wait()
        if code < 0 or code == OUT_OF_MEMORY:
            raise LimitError
        reason = cast("IO[bytes]", self._process.stderr).read().decode(errors="replace")
        raise RuntimeError(f"the process of a question's programs failed:\n{reason}")

    def _send(self, request: object) -> None:
        # The process may have ended; what it answered, or why it ended, is read afterwards.
        with suppress(BrokenPipeError):
            requests = cast("IO[bytes]", self._process.stdin)
            pickle.dump(request, requests)
            requests.flush()
