"""What the recipes' tests share."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


@pytest.fixture
def killed_in_turn() -> Callable[[Sequence[str], Path, Sequence[str]], None]:
    """Runs a command again and again, with kill -9 in the middle of one stage after the other; then to its end."""

    def run(command: Sequence[str], output: Path, stages: Sequence[str]) -> None:
        for stage in stages:
            place, deadline = output / stage, time.monotonic() + 120
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while not place.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(random.Random(stage).choice([0.0, 0.1, 0.3]))
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert place.exists()
            assert not (output / "result.json").exists()
        subprocess.run(command, check=True, capture_output=True, timeout=200)

    return run
