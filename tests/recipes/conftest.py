"""Fixtures of the recipes' tests."""

from __future__ import annotations

import itertools
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from penchant.cli.main import run as penchant
from penchant.config.run import RunConfig
from penchant.config.section import Section, override, validated
from penchant.errors import TrainingError
from penchant.evaluation import endpoint
from penchant.recipes.small_llama import Sizes, build_small_llama
from penchant.recipes.stages import Stage

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def real_folders() -> Callable[[Path], None]:
    """Writes small random models in place of the real ones: `smollm2`, which has a chat template, and `minilm`."""

    def write(folder: Path) -> None:
        texts = ["the lender gives notice to a borrower", "It sounds hard. Ask a doctor."]
        for name in ("smollm2", "minilm"):
            build_small_llama(folder / name, texts, Sizes(320, 32, 1, 2, 1024), 0)
        (folder / "smollm2" / "chat_template.jinja").write_text(CHAT, encoding="utf-8")

    return write


ReplyFunction = Callable[[str], str | int | None]


@pytest.fixture
def assert_stages_done(notices: pytest.LogCaptureFixture) -> Callable[[Callable[..., Any], Any, Any], None]:
    """Runs a finished recipe again: it gives the same result, and every stage says that it is already done."""

    def run_again(recipe: Callable[..., Any], config: Any, result: Any) -> None:
        notices.clear()
        assert recipe(config) == result
        lines = [record.getMessage() for record in notices.records if record.name == "penchant.recipes.stages"]
        assert lines
        assert all(line.endswith("already done") for line in lines)

    return run_again


@pytest.fixture
def run_with_kills(start_penchant) -> Callable[[Sequence[str], Path, Sequence[str]], None]:
    """Runs a command and kills it (kill -9) in the middle of every stage in turn; the last run goes to the end."""

    def run(arguments: Sequence[str], output: Path, stages: Sequence[str]) -> None:
        for stage in stages:
            stage_folder, deadline = output / stage, time.monotonic() + 120
            process = start_penchant(*arguments)
            while not stage_folder.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(random.Random(stage).choice([0.0, 0.05, 0.15]))
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert stage_folder.exists()
            assert not (output / "result.json").exists()
        # To the end in this process, whose seed of Python's hashes is another.
        assert penchant(list(arguments)) == 0

    return run


@pytest.fixture
def chat_endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[ReplyFunction], str]]:
    """Starts a chat endpoint that replies by a function: a text, an HTTP status, or None for no reply within a second.

    Gives the endpoint's address. Pauses between attempts are short.
    """
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.001)
    servers = []

    def start(reply_to: ReplyFunction) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = reply_to(request["messages"][-1]["content"])
                if reply is None:
                    time.sleep(1)
                    return
                data = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
                self.send_response(reply if isinstance(reply, int) else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # The shutdown waits for the server's next poll.
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/v1"

    yield start
    for server in servers:
        server.shutdown()


ADVICE = ("training.learning_rate=1e-7", "lora.rank=3", "objective.beta=0.25", "sampling.max_new_tokens=3")
"""Settings that a run's error message may suggest."""


def _method_has(setting: str, run: RunConfig) -> bool:
    needs = {
        "objective.beta": run.objective["name"] in ("dpo", "s_dpo"),
        "sampling.max_new_tokens": run.candidates == "sampled",
    }
    return needs.get(setting.partition("=")[0], True)


Stages = Callable[[Any], Sequence[Stage]]


class FailingRun:
    """A replacement of a stage's training run: it stores its configuration and fails with a suggested fix."""

    config: RunConfig
    advice = ""

    def __call__(self, config: RunConfig, **options: object) -> None:
        self.config = config
        raise TrainingError("the run stops", fix=self.advice)

    def advice_of(self, stages: Sequence[Stage], name: str, output: Path) -> str:
        """The fix that the named stage's error suggests."""
        [stage] = [stage for stage in stages if stage.name == name]
        with pytest.raises(TrainingError) as error:
            stage.run(output / name)
        return str(error.value.fix)


@pytest.fixture
def advised_sections(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Section, Stages, Iterable[str]], dict[str, set[str]]]:
    """The sections of a run that a training stage's errors name by the recipe's keys, by stage.

    The recipe gets each setting as the error prints it, and the stage's run must then have it.
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
