"""What the recipes' tests share."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
def assert_done() -> Callable[[Callable[..., Any], Any, Any], None]:
    """Runs a finished recipe again: it gives the same result, and every stage says that it was done before."""

    def run_again(recipe: Callable[..., Any], config: Any, result: Any) -> None:
        lines: list[str] = []
        assert recipe(config, tell=lines.append) == result
        assert lines
        assert all(line.endswith("done before") for line in lines)

    return run_again


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


ADVICE = ("training.learning_rate=1e-7", "lora.rank=3", "objective.beta=0.25", "sampling.max_new_tokens=3")
"""Settings that a run's error could advise."""


def _method_has(setting: str, run: RunConfig) -> bool:
    needs = {
        "objective.beta": run.objective["name"] in ("dpo", "s_dpo"),
        "sampling.max_new_tokens": run.candidates == "sampled",
    }
    return needs.get(setting.partition("=")[0], True)


Stages = Callable[[Any], Sequence[Stage]]


class FailingRun:
    """Stands in for a stage's training run: fails with advice, and keeps its configuration."""

    config: RunConfig
    advice = ""

    def __call__(self, config: RunConfig, **options: object) -> None:
        self.config = config
        raise TrainingError("the run stops", fix=self.advice)

    def advice_of(self, stages: Sequence[Stage], name: str, output: Path) -> str:
        """What the named stage advises."""
        [stage] = [stage for stage in stages if stage.name == name]
        with pytest.raises(TrainingError) as error:
            stage.run(output / name)
        return str(error.value.fix)


@pytest.fixture
def sections_advised(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Section, Stages, Iterable[str]], dict[str, set[str]]]:
    """By training stage, the sections of a run that its errors name by the recipe's own keys.

    Each setting is given to the recipe as the error prints it, and the stage's run must then have it.
    """
    run = FailingRun()
    monkeypatch.setattr("penchant.recipes.tuning.train", run)

    def sections(config: Section, stages: Stages, names: Iterable[str]) -> dict[str, set[str]]:
        output: Path = Path(config.output)
        by_stage: dict[str, set[str]] = {}
        for name, run.advice in itertools.product(names, ADVICE):
            by_stage.setdefault(name, set())
            setting = run.advice_of(stages(config), name, output)
            if setting == run.advice or not _method_has(run.advice, run.config):
                continue
            values = config.model_dump(mode="json")
            override(values, setting)
            run.advice_of(stages(validated(type(config), values, "changed")), name, output)
            key, _, value = run.advice.partition("=")
            section, _, field = key.partition(".")
            assert run.config.model_dump()[section][field] == float(value)
            by_stage[name].add(section)
        return by_stage

    return sections
