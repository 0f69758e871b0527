"""Functions called in a process of its own."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time

import pytest

from penchant.errors import DataError, TrainingError
from penchant.evaluation.tool_calls.alone import alone
from penchant.evaluation.tool_calls.calls import Function


def test_what_it_returns(capfd):
    assert alone(operator.add, 2, 3) == 5
    assert alone(os.getppid) == os.getpid()
    # More than a pipe holds, both ways.
    assert alone(operator.mul, b"x" * 1_000_000, 3) == b"x" * 3_000_000
    assert alone(print, "hello") is None
    assert capfd.readouterr() == ("", "")


def test_what_is_wrong(capfd):
    with pytest.raises(DataError) as error:
        alone(Function.read, {}, "here")
    assert (error.value.where, error.value.fix[:9]) == ("here", "give name")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        alone(operator.truediv, 1, 0)
    with pytest.raises(TrainingError, match="was ended by SIGKILL"):
        alone(signal.raise_signal, signal.SIGKILL)
    assert capfd.readouterr() == ("", "")


def test_one_that_cannot_start(monkeypatch):
    """It ends before it has read a question that is longer than a pipe holds."""
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(RuntimeError, match="No module named"):
        alone(operator.mul, b"x" * 1_000_000, 3)


def test_the_working_folder_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "pickle.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    assert alone(operator.add, 2, 3) == 5


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_the_one_that_asked(tmp_path, sent):
    """Its beats stop, whatever ends the process that waits for it; that one's script is not run again."""
    beats = tmp_path / "beats"
    beat = f"import time\nwhile True:\n    open({str(beats)!r}, 'a').write('.')\n    time.sleep(0.01)"
    script = tmp_path / "script.py"
    # A shell's background job ignores Ctrl-C, and so do the processes it starts.
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script.write_text(f"{heard}from penchant.evaluation.tool_calls.alone import alone\nalone(exec, {beat!r}, {{}})")
    with subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 60
            while not beats.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert beats.exists()
            process.send_signal(sent)
            process.wait(30)
        finally:
            process.kill()
    time.sleep(0.3)
    before = beats.stat().st_size
    time.sleep(0.3)
    assert beats.stat().st_size == before > 0
