"""Signals that end a run, and processes that no longer answer."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penchant.config.run import load_config
from penchant.storage.files import resumable_disk_errors
from penchant.training.run import train
from penchant.training.stop_signals import Interrupted, StopSignals

SLEEPER = """
import os, time
from dataclasses import dataclass
from typing import ClassVar
from penchant.objectives import DPO


@dataclass(frozen=True)
class Sleeper(DPO):
    name: ClassVar[str] = "sleeper"
    calls: ClassVar[list[int]] = []

    def __call__(self, policy, reference, groups, state):
        self.calls.append(1)
        if len(self.calls) > 3 and os.environ.get("RANK", "0") == os.environ["SLEEPING_RANK"]:
            time.sleep(600)
        return super().__call__(policy, reference, groups, state)
"""


def penchant(*arguments: object, processes: int = 1, **environment: str) -> subprocess.Popen[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *(launch if processes > 1 else []), "-m", "penchant", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
    )


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`penchant`; what it started is gone after the test, with all its processes."""
    processes: list[subprocess.Popen[str]] = []

    def run(*arguments: object, **options: object) -> subprocess.Popen[str]:
        processes.append(penchant(*arguments, **options))
        return processes[-1]

    yield run
    for process in processes:
        for pid in [*workers(process), process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Ids of a torchrun's processes, by rank."""
    ranks = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == process.pid:
                environment = (folder / "environ").read_bytes().split(b"\0")
                ranks.update({int(line[5:]): int(folder.name) for line in environment if line.startswith(b"RANK=")})
        except (OSError, ValueError):
            continue
    return [ranks[rank] for rank in sorted(ranks)]


def last_step(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    finished = log.read_text().split("\n")[:-1] if log.exists() else []
    return int(json.loads(finished[-1])["step"]) if finished else -1


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while last_step(folder) < step:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def first_line_with(text: str, process: subprocess.Popen[str], seconds: float = 60) -> str:
    """The first line of a process's errors that holds a text.

    Raises:
        queue.Empty: there is none within this time.
    """
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stderr], daemon=True).start()
    deadline = time.monotonic() + seconds
    while text not in (line := lines.get(timeout=max(0.0, deadline - time.monotonic()))):
        continue
    return line


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def test_the_command_that_was_typed_resumes_the_run(write_config, tmp_path, monkeypatch):
    """A verb that trains runs of its own, as `demo`, `compare` or a recipe, resumes them itself."""

    def enter(signals):
        signals.signal_number = signal.SIGINT
        return signals

    monkeypatch.setattr(StopSignals, "__enter__", enter)
    config = load_config(write_config())
    with pytest.raises(Interrupted, match=f"resume with: penchant train --resume {config.output}$"):
        train(config)
    with resumable_disk_errors(tmp_path), pytest.raises(Interrupted, match=r"resume with: the same command$"):
        train(config, resume=True)
    with pytest.raises(Interrupted, match=f"resume with: penchant train --resume {config.output}$"):
        train(config, resume=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["TERM", "HUP"])
def test_a_schedulers_signal_finishes_the_step_saves_and_leaves(write_config, tmp_path, start, number, code):
    """Sent twice, as a scheduler's to the whole group and torchrun's own do."""
    process = start("train", write_config(training={"max_steps": 100_000}, checkpoints={"every": 100_000}))
    folder = tmp_path / "run"
    wait_for_step(process, folder, 3)
    process.send_signal(number)
    process.send_signal(number)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == code, message
    assert f"penchant train --resume {folder}" in message
    assert checkpoints(folder) == [last_step(folder)]


@pytest.fixture
def sleeping(write_config, tmp_path) -> Callable[..., Path]:
    """A run whose objective sleeps for ten minutes from its fourth step on."""

    def write(**training: object) -> Path:
        (tmp_path / "sleeper.py").write_text(SLEEPER)
        return write_config(
            objective={"name": "sleeper", "file": str(tmp_path / "sleeper.py")},
            training={"max_steps": 100, "token_budget": 100_000, **training},
            checkpoints={"every": 2},
            data={"held_out": None},
        )

    return write


def test_after_the_grace_it_leaves_without_saving(sleeping, tmp_path, start):
    process = start("train", sleeping(grace_seconds=1.5), SLEEPING_RANK="0")
    folder = tmp_path / "run"
    wait_for_step(process, folder, 3)
    began = time.monotonic()
    process.terminate()
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert time.monotonic() - began > 1.4
    assert "not finished and saved within training.grace_seconds (1.5 s)" in message
    assert f"penchant train --resume {folder}" in message
    assert checkpoints(folder) == [2]


def test_a_hang_up_that_is_ignored_stays_ignored():
    """As under nohup."""
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals("penchant train --resume run", 10) as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.signal_number is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.signal_number == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, handler)


@pytest.mark.slow
@pytest.mark.parametrize("by_launcher", [True, False], ids=["torchrun", "one rank"])
def test_all_ranks_stop_at_one_step(write_config, tmp_path, start, by_launcher):
    file = write_config(training={"max_steps": 100_000}, checkpoints={"every": 100_000})
    process, folder = start("train", file, processes=2), tmp_path / "run"
    wait_for_step(process, folder, 3)
    os.kill(process.pid if by_launcher else workers(process)[1], signal.SIGTERM)
    message = process.communicate(timeout=90)[1]
    assert process.returncode != 0
    assert message.count("error: interrupted; resume with") == 2
    assert checkpoints(folder) == [last_step(folder)]


@pytest.mark.slow
def test_a_stopped_rank_is_named(write_config, tmp_path, start):
    file = write_config(training={"max_steps": 100_000, "rank_timeout_seconds": 5})
    process, folder = start("train", file, processes=2), tmp_path / "run"
    wait_for_step(process, folder, 3)
    stopped_pid = workers(process)[1]
    os.kill(stopped_pid, signal.SIGSTOP)
    line = first_line_with("error: rank", process)
    assert re.search(rf"rank 1 of 2: it has not answered for \d+ s.*process {stopped_pid} on ", line)


@pytest.mark.slow
def test_a_hanging_rank_is_named(sleeping, start):
    process = start("train", sleeping(rank_timeout_seconds=5), processes=2, SLEEPING_RANK="1")
    line = first_line_with("error: rank", process)
    assert re.search(r"rank 1 of 2: the others have waited \d+ s for it: it hangs \(process \d+ on ", line)
