"""A function called in a process of its own, so that what it holds in memory is not mixed with what this one held."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, TypeVar, cast

from penchant.errors import PenchantError, TrainingError

T = TypeVar("T")

# No module is run by its name (-m), which would put the working folder in front of the libraries'; nor by
# multiprocessing, which runs a user's script again.
START = "import sys; sys.path[:] = {path!r}; from penchant.evaluation.tool_calls.alone import answer; answer()"


def alone(function: Callable[..., T], *arguments: object) -> T:
    """What the function returns, called in a fresh process that ends with this one, however this one ends.

    The process says nothing: what it prints is shown where it fails.

    Args:
        function: of a module, not of a script; it, its arguments and what it returns can be pickled.

    Raises:
        PenchantError: the function's own; or the process was ended by a signal, as where memory runs out.
        RuntimeError: any other error, with its traceback.
    """
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "-c", START.format(path=sys.path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as process:
            asked, told = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
            try:
                pickle.dump((function, arguments), asked)
                asked.flush()
                found = told.read()
                code = process.wait()
            except BrokenPipeError:
                with suppress(BrokenPipeError):
                    asked.close()
                found, code = b"", process.wait()
            finally:
                process.kill()
        if code < 0:
            raise TrainingError(
                f"a process that measures a model was ended by {signal.Signals(-code).name}",
                fix="look whether the machine has enough free memory for the model, and start again",
            )
        if code or not found:
            said.seek(0)
            raise RuntimeError(f"a process of its own failed:\n{said.read().decode(errors='replace')}")
    result = pickle.loads(found)
    if isinstance(result, PenchantError):
        raise result
    return cast(T, result)


def answer() -> None:
    """What the process does: call what it is asked to, and tell what came of it."""
    told = os.fdopen(os.dup(1), "wb")
    # Whatever prints must not stand in the result.
    os.dup2(2, 1)
    function, arguments = pickle.load(os.fdopen(os.dup(0), "rb"))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        result = function(*arguments)
    except PenchantError as error:
        result = error
    with told:
        pickle.dump(result, told)


def _end_with_parent() -> None:
    """Its end of the pipe is closed when it is gone, also by kill -9."""
    os.read(0, 1)
    os._exit(1)
