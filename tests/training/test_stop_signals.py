"""Signals that end a run, and processes that no longer answer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture
def start_torchrun() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command line on two processes by torchrun; all are gone after the test."""
    launchers: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "penchant"]
        command = [sys.executable, *launch, *map(str, arguments)]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        launchers.append(subprocess.Popen(command, text=True, env=variables, start_new_session=True, **pipes))
        return launchers[-1]

    yield run
    for launcher in launchers:
        for pid in [*workers(launcher), launcher.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        launcher.wait()


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


def wait_for_step(process: Any, folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while last_step(folder) < step:
        assert process.poll() is None, f"it ended with {process.poll()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


@pytest.mark.slow_but("TERM")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["TERM", "HUP"])
def test_a_schedulers_signal_finishes_the_step_saves_and_leaves(write_config, tmp_path, start_penchant, number, code):
    """Sent twice, as a scheduler's to the whole group and torchrun's own do."""
    file = write_config(training={"max_steps": 100_000}, checkpoints={"every": 100_000})
    folder, errors = tmp_path / "run", tmp_path / "errors"
    process = start_penchant("train", file, stderr=errors)
    wait_for_step(process, folder, 3)
    process.send_signal(number)
    process.send_signal(number)
    exit_code, message = process.wait(60), errors.read_text()
    assert exit_code == code, message
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


def test_after_the_grace_it_leaves_without_saving(sleeping, tmp_path, start_penchant):
    folder, errors = tmp_path / "run", tmp_path / "errors"
    process = start_penchant("train", sleeping(grace_seconds=1.5), stderr=errors, variables={"SLEEPING_RANK": "0"})
    wait_for_step(process, folder, 3)
    began = time.monotonic()
    process.terminate()
    exit_code, message = process.wait(60), errors.read_text()
    assert exit_code == 143
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
def test_all_ranks_stop_at_one_step(write_config, tmp_path, start_torchrun):
    """Of a torchrun that gets the signal."""
    file = write_config(training={"max_steps": 100_000}, checkpoints={"every": 100_000})
    process, folder = start_torchrun("train", file), tmp_path / "run"
    wait_for_step(process, folder, 3)
    process.terminate()
    message = process.communicate(timeout=90)[1]
    assert process.returncode != 0
    assert message.count("error: interrupted; resume with") == 2
    assert checkpoints(folder) == [last_step(folder)]


@pytest.fixture
def two_ranks(start_ranks) -> Iterator[Callable[..., tuple[list[Any], list[Path]]]]:
    """Starts a run on two processes, which are gone after the test; gives them and the files of their errors."""
    processes: list[Any] = []

    def run(file: Path, **variables: str) -> tuple[list[Any], list[Path]]:
        ranks = start_ranks(2, "train", file, variables=variables)
        processes.extend(process for process, _, _ in ranks)
        return processes, [errors for _, _, errors in ranks]

    yield run
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait(60)


def first_line_with(text: str, file: Path, seconds: float = 60) -> str:
    """The first line of a file that holds a text, once it is there."""
    deadline = time.monotonic() + seconds
    while not (lines := [line for line in file.read_text().splitlines() if text in line]):
        assert time.monotonic() < deadline, file.read_text()
        time.sleep(0.05)
    return lines[0]


@pytest.mark.slow
def test_all_ranks_stop_with_one_at_one_step(write_config, tmp_path, two_ranks):
    folder = tmp_path / "run"
    processes, errors = two_ranks(write_config(training={"max_steps": 100_000}, checkpoints={"every": 100_000}))
    wait_for_step(processes[0], folder, 3)
    processes[1].terminate()
    assert [process.wait(90) for process in processes] == [143, 143]
    assert all(file.read_text().count("error: interrupted; resume with") == 1 for file in errors)
    assert checkpoints(folder) == [last_step(folder)]


@pytest.mark.slow
def test_a_stopped_rank_is_named(write_config, tmp_path, two_ranks):
    folder = tmp_path / "run"
    processes, errors = two_ranks(write_config(training={"max_steps": 100_000, "rank_timeout_seconds": 5}))
    wait_for_step(processes[0], folder, 3)
    processes[1].send_signal(signal.SIGSTOP)
    line = first_line_with("error: rank", errors[0])
    assert re.search(rf"rank 1 of 2: it has not answered for \d+ s.*process {processes[1].pid} on ", line)


@pytest.mark.slow
def test_a_hanging_rank_is_named(sleeping, two_ranks):
    _, errors = two_ranks(sleeping(rank_timeout_seconds=5), SLEEPING_RANK="1")
    line = first_line_with("error: rank", errors[0])
    assert re.search(r"rank 1 of 2: the others have waited \d+ s for it: it hangs \(process \d+ on ", line)
