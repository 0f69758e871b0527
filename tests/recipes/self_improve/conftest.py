"""What tests of the loop share, whatever its learner does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from penchant.recipes import demo_world as world
from penchant.recipes.self_improve.buffer import ReplayBuffer
from penchant.recipes.self_improve.loop import TrainerProcess, read_rounds
from penchant.recipes.self_improve.run_folder import open_buffer
from penchant.recipes.self_improve.trainer import is_idle, next_update

START_TRAINER = TrainerProcess._start
"""It starts a new interpreter; other tests have theirs by `start_penchant`."""

# The trainer ends when the process that started it is no longer its parent, which is zygote.py here.
TRAINER = """
import os, sys
from penchant.recipes.self_improve.trainer import run, run_process
sys.argv[2] = str(os.getppid())
sys.exit(run_process(run))
"""


@pytest.fixture(scope="module", autouse=True)
def _forked_trainer(request):
    """Trainers of loops in this process start without seconds of imports."""

    def start(trainer):
        log = trainer._output / "trainer.log"
        start_penchant = request.getfixturevalue("start_penchant")
        return start_penchant("-c", TRAINER, trainer._output, 0, stdout=log, stderr=log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerProcess, "_start", start)
        yield


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
        assert 0 < next_update(output) - 1 == rounds[-1]["updates"] <= buffer.count_added() // config.update.new
        # No process is left running.
        _wait_for(lambda: not subprocess.run(["pgrep", "-f", str(output)], capture_output=True).stdout)

    return check


@pytest.fixture(scope="session")
def learner(tmp_path_factory):
    """A random Llama with the world's tokenizer; a few of its answers are short by chance."""
    folder = tmp_path_factory.mktemp("learner") / "model"
    tokenizer = world.build_tokenizer()
    tokenizer.save_pretrained(folder)
    world.build_model(len(tokenizer), 0).save_pretrained(folder)
    return str(folder)
