"""Calls of a function in a fresh process, whose memory can be measured apart from that of this process."""

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

# `python -m` would search the working folder for modules before the libraries' folders, and multiprocessing would run
# a user's script a second time: the subprocess starts with `-c` instead.
START = (
    "import sys; sys.path[:] = {path!r}; "
    "from penchant.evaluation.tool_calls.alone import run_requested_call; run_requested_call()"
)


def run_in_subprocess(function: Callable[..., T], *arguments: object) -> T:
    """The function's return value, computed in a fresh process that ends when this process ends, even by SIGKILL.

    The output of the process is hidden; if it fails, the error shows what it printed.

    Args:
        function: a function of a module, not of a script. The function, its arguments and its return value are
            pickled.

    Raises:
        PenchantError: the function raised it, or a signal ended the process, as where memory runs out.
        RuntimeError: the function raised any other error; the message holds its traceback.
    """
    with tempfile.TemporaryFile() as stderr_file:
        command = [sys.executable, "-c", START.format(path=sys.path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr_file) as process:
            request_pipe, result_pipe = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
            try:
                pickle.dump((function, arguments), request_pipe)
                request_pipe.flush()
                payload = result_pipe.read()
                code = process.wait()
            except BrokenPipeError:
                with suppress(BrokenPipeError):
                    request_pipe.close()
                payload, code = b"", process.wait()
            finally:
                process.kill()
        if code < 0:
            raise TrainingError(
                f"a process that measures a model was ended by {signal.Signals(-code).name}",
                fix="look whether the machine has enough free memory for the model, and start again",
            )
        if code or not payload:
            stderr_file.seek(0)
            raise RuntimeError(f"the subprocess failed:\n{stderr_file.read().decode(errors='replace')}")
    result = pickle.loads(payload)
    if isinstance(result, PenchantError):
        raise result
    return cast(T, result)


def run_requested_call() -> None:
    """Run in the subprocess: read the function and its arguments from stdin, and write its result to stdout."""
    result_pipe = os.fdopen(os.dup(1), "wb")
    # What the function prints must not mix with the pickled result.
    os.dup2(2, 1)
    function, arguments = pickle.load(os.fdopen(os.dup(0), "rb"))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        result = function(*arguments)
    except PenchantError as error:
        result = error
    with result_pipe:
        pickle.dump(result, result_pipe)


def _end_with_parent() -> None:
    """End this process when the parent's end of the pipe closes, which also happens after SIGKILL."""
    os.read(0, 1)
    os._exit(1)
