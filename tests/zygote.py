"""A program that starts `python -m penchant` repeatedly without its imports: it has them, and forks for each start.

Run as a program, by the fixture `start_penchant` and benchmarks/faults.py; never imported. Each line of its input is a
request, answered by a line: {"arguments", "environment", "folder", "stderr"} and perhaps {"stdout"} starts a process,
and is answered by its id; {"pid"} asks for an exit code, null while it runs. A text tells what is wrong. Arguments that
begin with -c and a program start that, as those of `python` do.

A fork copies only the thread that forks, and with it every lock that another thread held, so there is to be no other:
nothing is imported here that starts one (pyarrow does, and so datasets, pandas and scikit-learn, which are left to the
children), and nothing is calculated.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import pkgutil
import runpy
import signal
import sys
from importlib import import_module
from typing import Any

HEAVY = (
    "peft",
    "diffusers",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "rich.live",
    "rich.table",
)


def import_all() -> None:
    """Import all modules that the command line imports at some point."""
    sys.path[0] = os.getcwd()  # as with -m
    from penchant import recipes
    from penchant.cli import main as cli

    # It sets the environment that libraries read when they are imported.
    sys.argv = ["penchant", "--version"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli.main()
    # The answers have the standard output for themselves.
    with contextlib.redirect_stdout(sys.stderr):
        for name in (*HEAVY, *(module.name for module in pkgutil.walk_packages(recipes.__path__, "penchant.recipes."))):
            import_module(name)
    # A child's collections of garbage would go through all these modules, and copy their pages.
    gc.freeze()


def become(request: dict[str, Any]) -> None:
    """In the child: make it what a new interpreter would be, in a session of its own."""
    import numpy as np

    os.setsid()
    for number, path in enumerate((os.devnull, request.get("stdout", os.devnull), request["stderr"])):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = os.getcwd()
    sys.argv[1:] = request["arguments"]
    np.random.seed()  # Python's own generator does so by itself, and torch's begins with a constant.


def main() -> None:
    import_all()
    living = set()
    for line in sys.stdin:
        request = json.loads(line)
        if pid := request.get("pid"):
            ended_pid, status = os.waitpid(pid, os.WNOHANG)
            living.discard(ended_pid)
            print(json.dumps(os.waitstatus_to_exitcode(status) if ended_pid else None), flush=True)
            continue
        threads, files = (os.listdir(f"/proc/self/{kind}") for kind in ("task", "fd"))
        if len(threads) > 1 or len(files) > 4:  # the standard files, and the folder just listed
            print(json.dumps(f"it cannot fork with threads {threads} and files {files}"), flush=True)
            continue
        if not (pid := os.fork()):
            become(request)
            if sys.argv[1:2] == ["-c"]:
                code = sys.argv.pop(2)
                del sys.argv[0]
                exec(code, {"__name__": "__main__"})
                sys.exit()
            # It ends by SystemExit, and the interpreter then as ever: nothing on the way out catches it.
            runpy.run_module("penchant", run_name="__main__", alter_sys=True)
            sys.exit()
        living.add(pid)
        print(pid, flush=True)
    for pid in living:
        os.kill(pid, signal.SIGKILL)


main()
