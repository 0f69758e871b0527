"""Tests of functions called in a subprocess."""

from __future__ import annotations

import operator
import os
import signal
import sys
import time

import pytest

from penchant.errors import DataError, TrainingError
from penchant.evaluation.tool_calls.calls import Function
from penchant.evaluation.tool_calls.latency import run_in_subprocess

pytestmark = pytest.mark.slow


def test_return_values_pass_both_ways(capfd):
    # The data exceed a pipe's buffer both ways.
    expression, data = "(print('hello'), __import__('os').getppid(), 3 * data)", b"x" * 1_000_000
    assert run_in_subprocess(eval, expression, {"data": data}) == (None, os.getpid(), 3 * data)
    assert capfd.readouterr() == ("", "")


def test_errors_are_raised_in_the_caller(capfd):
    with pytest.raises(DataError) as error:
        run_in_subprocess(Function.read, {}, "here")
    assert (error.value.where, error.value.fix[:9]) == ("here", "give name")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_in_subprocess(operator.truediv, 1, 0)
    with pytest.raises(TrainingError, match="was ended by SIGKILL"):
        run_in_subprocess(signal.raise_signal, signal.SIGKILL)
    assert capfd.readouterr() == ("", "")


def test_a_subprocess_that_fails_at_start_shows_its_error(monkeypatch):
    """It ends before it has read its arguments, which exceed a pipe's buffer."""
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(RuntimeError, match="No module named"):
        run_in_subprocess(operator.mul, b"x" * 1_000_000, 3)


def test_modules_in_the_working_folder_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "pickle.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    assert run_in_subprocess(operator.add, 2, 3) == 5


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_the_subprocess_ends_with_its_parent(tmp_path, start_penchant, signal_number):
    """The subprocess stops writing when a signal ends its parent, and does not run the parent's script again."""
    beats = tmp_path / "beats"
    beat = f"import time\nwhile True:\n    open({str(beats)!r}, 'a').write('.')\n    time.sleep(0.01)"
    script = tmp_path / "script.py"
    # A shell's background job ignores Ctrl-C, and so do the processes it starts.
    restore_handler = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    start = (
        f"from penchant.evaluation.tool_calls.latency import run_in_subprocess\nrun_in_subprocess(exec, {beat!r}, {{}})"
    )
    script.write_text(restore_handler + start)
    as_a_script = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    process = start_penchant("-c", as_a_script, script)
    try:
        deadline = time.monotonic() + 60
        while not beats.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert beats.exists()
        process.send_signal(signal_number)
        process.wait(30)
    finally:
        process.send_signal(signal.SIGKILL)
    time.sleep(0.3)
    size = beats.stat().st_size
    time.sleep(0.3)
    assert beats.stat().st_size == size > 0
