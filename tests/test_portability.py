"""Modules and calls that only POSIX has are asked for when they are needed, never at import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from penchant.engine import memory
from penchant.errors import ConfigError

HIDDEN = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "_posixsubprocess")

SCRIPT = """
import builtins, importlib, os, pkgutil, signal, sys
import asyncio, multiprocessing, subprocess, tempfile, torch, transformers, peft, datasets  # as they are here
import penchant
own = builtins.__import__

def hiding(name, globals=None, *rest):
    if (globals or {{}}).get("__name__", "").startswith("penchant") and name.split(".")[0] in {hidden}:
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return own(name, globals, *rest)

builtins.__import__ = hiding
for name in ("sysconf", "fork", "getuid", "geteuid", "killpg", "setsid", "getloadavg", "sched_getaffinity"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM"):
    if hasattr(signal, name):
        delattr(signal, name)
platform, sys.platform = sys.platform, "win32"
failed = []
for found in pkgutil.walk_packages(penchant.__path__, "penchant."):
    if found.name == "penchant.__main__":
        continue
    try:
        importlib.import_module(found.name)
    except ImportError as error:
        if error.name in {hidden}:
            failed.append(f"{{found.name}}: {{error}}")
    except (AttributeError, OSError) as error:
        failed.append(f"{{found.name}}: {{error!r}}")
assert not failed, failed
from penchant.engine.memory import available_bytes, peak_process_bytes
from penchant.comparison.design import cost_of
from pathlib import Path
assert available_bytes(torch.device("cpu")) > 1 << 20
assert cost_of(Path("nowhere"))["peak_memory_mb"] >= 0
from penchant.cli.main import run
sys.platform = platform  # the console library asks Windows itself
sys.exit(run(["--help"]))
"""


@pytest.mark.slow
def test_modules_import_without_posix_modules(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(hidden=HIDDEN), encoding="utf-8")
    process = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    assert "train" in process.stdout


def test_missing_file_lock_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from penchant.recipes.self_improve.trainer import trainer_lock

    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ConfigError, match="fcntl"), trainer_lock(tmp_path):
        pass


def test_memory_without_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.peak_process_bytes() > 10 << 20
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.peak_process_bytes() >= 0
    monkeypatch.delattr("os.sysconf")
    assert memory._machine_bytes() > 1 << 20
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert memory.peak_process_bytes() == 0
    assert memory._machine_bytes() == memory.UNKNOWN_BYTES
