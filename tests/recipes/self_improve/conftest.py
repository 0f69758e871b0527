"""What tests of the loop share, whatever its learner does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from penchant.recipes.self_improve.buffer import ReplayBuffer
from penchant.recipes.self_improve.loop import read_rounds
from penchant.recipes.self_improve.run_folder import open_buffer
from penchant.recipes.self_improve.trainer import is_idle, next_update


def _buffer_counts(output):
    buffer = ReplayBuffer(output / "buffer.sqlite", 100)
    return {name: buffer.counts()[name] for name in ("judgements", "groups")}


@pytest.fixture(scope="session")
def buffer_counts():
    """Of a run's folder, the judgements and groups in its buffer."""
    return _buffer_counts


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="session")
def check_resume_after_kills(start_penchant):
    """Runs a configuration with kills (SIGKILL) of the learner's process and then the trainer's, and checks the end."""

    def check(config, folder):
        output, file, error_log = Path(config.output), folder / "config.yaml", folder / "stderr"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        process = start_penchant("recipe", "self-improve", file)
        _wait_for(lambda: (output / "buffer.sqlite").exists() and _buffer_counts(output)["judgements"] > 0)
        process.send_signal(signal.SIGKILL)
        process.wait()
        judgements_before_kill = _buffer_counts(output)["judgements"]
        process = start_penchant("recipe", "self-improve", file, stderr=error_log)
        _wait_for(lambda: (output / "updates" / "1").exists())
        for child in _children(process.pid):
            os.kill(child, signal.SIGKILL)
        assert process.wait(120) == 0, error_log.read_text()
        rounds = read_rounds(config)
        assert (
            _buffer_counts(output)["judgements"]
            == sum(round_.get("judgements", 0) for round_ in rounds)
            >= judgements_before_kill
        )
        assert len(rounds) == config.rounds + 1
        buffer = open_buffer(config)
        assert is_idle(config, buffer)
        # What was added before the kill is not buffer_counts again after it.
        assert buffer.count_added() == _buffer_counts(output)["groups"] == rounds[-1]["groups"]
        assert next_update(output) - 1 == buffer.count_added() // config.update.new == rounds[-1]["updates"]
        # No process is left running.
        _wait_for(lambda: not subprocess.run(["pgrep", "-f", str(output)], capture_output=True).stdout)

    return check
