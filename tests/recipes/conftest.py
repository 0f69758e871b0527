"""What the recipes' tests share."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from penchant.config import RunConfig
from penchant.config_errors import validated
from penchant.config_keys import override
from penchant.config_section import Section
from penchant.errors import TrainingError
from penchant.evaluation import endpoint
from penchant.recipes.stages import Stage

Says = Callable[[str], str | int | None]


@pytest.fixture
def killed_in_turn(start_penchant) -> Callable[[Sequence[str], Path, Sequence[str]], None]:
    """Runs a command line again and again, with kill -9 in the middle of one stage after the other; then to its end."""

    def run(arguments: Sequence[str], output: Path, stages: Sequence[str]) -> None:
        for stage in stages:
            place, deadline = output / stage, time.monotonic() + 120
            process = start_penchant(*arguments)
            while not place.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(random.Random(stage).choice([0.0, 0.05, 0.15]))
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert place.exists()
            assert not (output / "result.json").exists()
        command = [sys.executable, "-m", "penchant", *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=200)

    return run


@pytest.fixture
def saying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Says], str]]:
    """Starts an endpoint that answers a question by a function: a text, an HTTP status, or None for a long silence.

    What it gives is the endpoint's address. Pauses between attempts are short.
    """
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.001)
    servers = []

    def start(says: Says) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                said = says(asked["messages"][-1]["content"])
                if said is None:
                    time.sleep(1)
                    return
                data = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
                self.send_response(said if isinstance(said, int) else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # The shutdown waits for the next look.
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/v1"

    yield start
    for server in servers:
        server.shutdown()


def _of_its_kind(setting: str, run: RunConfig) -> bool:
    """Whether the run's method has the setting."""
    needed = {
        "objective.beta": run.objective["name"] in ("dpo", "s_dpo"),
        "sampling.max_new_tokens": run.candidates == "sampled",
    }
    return needed.get(setting.partition("=")[0], True)


TYPED = ("training.learning_rate=1e-7", "lora.rank=3", "objective.beta=0.25", "sampling.max_new_tokens=3")
"""Settings that a run could advise."""


@pytest.fixture
def advised_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, set[str]]]:
    """For every training stage of a recipe, the settings of a run that its errors advise under the recipe's own keys.

    Each is typed as it is printed, and then the stage's run has it.
    """
    runs: list[RunConfig] = []
    advice = [""]

    def train(run: RunConfig, **options: object) -> None:
        runs.append(run)
        raise TrainingError("the run stops", fix=advice[0])

    def fix_of(stage: Stage, output: Path) -> str | None:
        try:
            stage.run(output / stage.name)
        except TrainingError as error:
            return error.fix
        return None

    def advised(config: Section, stages: Callable[[Any], Sequence[Stage]], names: Sequence[str]) -> dict[str, set[str]]:
        monkeypatch.setattr("penchant.recipes.tuning.train", train)
        output, followed = Path(config.output), {}
        for name in names:
            followed[name] = set()
            for setting in TYPED:
                advice[0] = setting
                typed = fix_of({stage.name: stage for stage in stages(config)}[name], output)
                if typed == setting or not _of_its_kind(setting, runs[-1]):
                    continue
                values = config.model_dump(mode="json")
                override(values, typed)
                changed = validated(type(config), values, "typed")
                fix_of({stage.name: stage for stage in stages(changed)}[name], output)
                section, _, key = setting.partition("=")[0].partition(".")
                assert runs[-1].model_dump()[section][key] == float(setting.partition("=")[2])
                followed[name].add(section)
        return followed

    return advised
