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
from penchant.recipes.self_improve.parts import open_buffer
from penchant.recipes.self_improve.trainer import idle, next_update


def _counted(output):
    buffer = ReplayBuffer(output / "buffer.sqlite", 100)
    return {name: buffer.counts()[name] for name in ("judgements", "groups")}


@pytest.fixture(scope="session")
def counted():
    """Of a run's folder, the judgements and groups in its buffer."""
    return _counted


def _children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="session")
def killed_anywhere(start_penchant):
    """Runs a configuration, killing the learner's process, then the trainer's, by SIGKILL in the middle; to the end."""

    def check(config, folder):
        output, file, told = Path(config.output), folder / "config.yaml", folder / "stderr"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        process = start_penchant("recipe", "self-improve", file)
        _wait_for(lambda: (output / "buffer.sqlite").exists() and _counted(output)["judgements"] > 0)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = _counted(output)["judgements"]
        process = start_penchant("recipe", "self-improve", file, stderr=told)
        _wait_for(lambda: (output / "updates" / "1").exists())
        for child in _children(process.pid):
            os.kill(child, signal.SIGKILL)
        assert process.wait(120) == 0, told.read_text()
        rounds = read_rounds(config)
        assert _counted(output)["judgements"] == sum(each.get("judgements", 0) for each in rounds) >= kept
        assert len(rounds) == config.rounds + 1
        buffer = open_buffer(config)
        assert idle(config, buffer)
        # What was added before the kill is not counted again after it.
        assert buffer.added() == _counted(output)["groups"] == rounds[-1]["groups"]
        assert next_update(output) - 1 == buffer.added() // config.update.new == rounds[-1]["updates"]
        # Nothing is left running.
        _wait_for(lambda: not subprocess.run(["pgrep", "-f", str(output)], capture_output=True).stdout)

    return check
