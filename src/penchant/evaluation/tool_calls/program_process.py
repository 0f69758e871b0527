"""The process that holds a multi-turn question's programs: objects with methods and a state, called by name.

It runs with the limits of `programs.Limits` and imports nothing but the standard library and the programs. Requests are
pickled on stdin; answers are lines of JSON on stdout, so that the parent reads nothing but JSON from it.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from importlib import import_module
from typing import Any

Program = tuple[str, str, Mapping[str, Any] | None]
"""A program: the module and the name of its class, and its first state; None if it has no state."""

Invocation = tuple[str, Sequence[Any], Mapping[str, Any]]
"""A method's name, its positional and its named arguments."""

NO_CALL, OTHER_STATE, OTHER_RESULTS = "NO_CALL_IN_TURN", "STATE", "RESULTS"
"""Names of the faults of a turn, as in `calls.Fault`."""

OUT_OF_MEMORY = 3
"""Exit code of a process whose call needs more memory than it may use."""


class Programs:
    """One set of objects, and their public methods by name; of two methods with one name the later class's counts.

    Args:
        long: whether the programs fill their state with the texts of the long-context category.
    """

    def __init__(self, programs: Sequence[Program], *, long: bool) -> None:
        self.objects: dict[str, Any] = {}
        self._methods: dict[str, Callable[..., Any]] = {}
        for module, name, first_state in programs:
            program = getattr(import_module(module), name)()
            if first_state is not None:
                program._load_scenario(deepcopy(first_state), long_context=long)
            self.objects[name] = program
            methods = inspect.getmembers(program, predicate=inspect.ismethod)
            self._methods |= {method: function for method, function in methods if not method.startswith("_")}

    def execute(self, invocations: Sequence[Invocation]) -> list[str]:
        """The results of the calls in their order, as texts; an error is the result of the call that raised it."""
        return [self._execute_one(*invocation) for invocation in invocations]

    def _execute_one(self, name: str, positional: Sequence[Any], keywords: Mapping[str, Any]) -> str:
        if name not in self._methods:
            return f"Error during execution: name '{name}' is not defined"
        try:
            return _as_text(self._methods[name](*positional, **keywords))
        except MemoryError:
            raise
        except Exception as error:
            return f"Error during execution: {error}"


def _as_text(result: object) -> str:
    """A result as the leaderboard writes it: a dict as JSON if it can be, all others as Python prints them."""
    if type(result) is dict:
        try:
            return json.dumps(result)
        except (TypeError, ValueError):
            pass
    return str(result)


class TurnChecker:
    """The programs twice: called by a model, and by the calls that are due.

    A turn is right if it leaves every object in the state that the due calls leave, and if the model's results so far
    contain the results of the turn's due calls, in any order. A turn without due calls is not checked.
    """

    def __init__(self, programs: Sequence[Program], *, long: bool) -> None:
        self._model_programs, self._due_programs = (Programs(programs, long=long) for _ in range(2))
        self._results: list[str] = []
        self._has_called = False

    def execute(self, invocations: Sequence[Invocation]) -> list[str]:
        """The results of a model's calls."""
        results = self._model_programs.execute(invocations)
        self._results += results
        self._has_called |= bool(invocations)
        return results

    def end_turn(self, due_calls: Sequence[Invocation]) -> str | None:
        """The name of the turn's fault; None if it is right.

        Args:
            due_calls: the calls that are due in the turn.
        """
        expected = self._due_programs.execute(due_calls)
        has_called, self._has_called = self._has_called, False
        if not due_calls:
            return None
        if not has_called:
            return NO_CALL
        if any(
            not _same_state(self._model_programs.objects[name], program)
            for name, program in self._due_programs.objects.items()
        ):
            return OTHER_STATE
        return OTHER_RESULTS if Counter(expected) - Counter(self._results) else None


def _same_state(program: object, expected: object) -> bool:
    """Whether two objects of a class have equal attributes; those with a leading underscore do not count."""
    return all(getattr(program, name) == value for name, value in vars(expected).items() if not name.startswith("_"))


def serve() -> None:
    """Answer requests from stdin until its end; the first request has the programs and the limits."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    # What the programs read or print must not mix with requests and answers.
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 0)
    os.dup2(silence, 1)
    programs, long, seconds, bytes_of_memory = pickle.load(requests)
    checker = TurnChecker(programs, long=long)
    _limit(seconds, bytes_of_memory)
    with suppress(EOFError):
        while True:
            method, invocations = pickle.load(requests)
            try:
                answer = json.dumps(getattr(checker, method)(invocations))
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
            answers.write(answer + "\n")
            answers.flush()


def _limit(seconds: int, bytes_of_memory: int) -> None:
    """Limit the seconds of computing, the memory, and forbid writing files; without effect on Windows."""
    try:
        import resource
    except ImportError:
        return
    for kind, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, bytes_of_memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, highest = resource.getrlimit(kind)
        # Between the two limits of computing the process gets a signal that tells this limit from the clock's.
        hard = limit + 1 if highest == resource.RLIM_INFINITY else min(limit + 1, highest)
        resource.setrlimit(kind, (min(limit, hard), hard))
