"""`penchant serve --learn` as a process: ordinary requests tune the model, which is swapped while it serves."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from penchant.cli.main import run
from penchant.serving.run import find_experts

RULE = "def conditions(prompt, answer):\n    return {'short': len(answer.split()) < 6}\n"


def write_config(folder, model, **changes):
    (folder / "rule.py").write_text(RULE)
    values = {
        "model": str(model),
        "output": str(folder / "out"),
        "verifier": {"function": f"{folder / 'rule.py'}:conditions"},
        "attempts": 4,
        "sampling": {"max_new_tokens": 60},
        "held_out": 0.4,
        "checks": 24,
        "measured": 2,
        "update": {
            "new": 24,
            "groups": 64,
            "lora": {"rank": 8},
            "training": {"epochs": 4, "batch_size": 16, "learning_rate": 5e-3},
        },
        **changes,
    }
    file = folder / "learn.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_a_model_that_is_not_served_cannot_learn(tiny_model, tmp_path, capsys):
    file = write_config(tmp_path, tmp_path / "elsewhere")
    assert run(["serve", str(tiny_model), "--learn", str(file)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "elsewhere is to learn and is served under 0 names, expected one" in message
    assert not (tmp_path / "out").exists()


def test_an_unknown_key_of_the_file_is_named(tiny_model, tmp_path, capsys):
    assert run(["serve", "--learn", str(write_config(tmp_path, tiny_model, rounds=3))]) == 2
    assert "rounds" in capsys.readouterr().err


class Server:
    """A running server, and requests to it."""

    def __init__(self, start_penchant, file, folder):
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.process = start_penchant("serve", "--learn", file, "--port", str(port), stderr=folder / "stderr")
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, (folder / "stderr").read_text()
                assert time.monotonic() < until
                time.sleep(0.1)

    def learning(self):
        with urllib.request.urlopen(f"{self.address}/learning", timeout=60) as reply:
            return json.load(reply)

    def ask(self, text, **fields):
        body = {"model": self.name, "messages": [{"role": "user", "content": text}], "max_tokens": 60, **fields}
        request = urllib.request.Request(
            f"{self.address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["choices"][0]["message"]["content"]

    name = "model"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        # uvicorn ends by the signal once everything is stopped.
        assert self.process.wait(60) == -signal.SIGTERM


@pytest.mark.slow
def test_traffic_makes_answers_better_through_a_crash_and_a_restart(tiny_model, tmp_path, start_penchant):
    assert list(find_experts([str(tiny_model)])[0]) == [Server.name]
    file = write_config(tmp_path, tiny_model)
    server = Server(start_penchant, file, tmp_path)
    prompts = [f"{first} {second} {third}" for first in WORDS for second in WORDS for third in WORDS]
    until, has_crashed = time.monotonic() + 900, False
    for number, prompt in enumerate(itertools.cycle(prompts)):
        server.ask(prompt, seed=number)
        time.sleep(0.3)
        status = server.learning()
        if not has_crashed and status["judged"]:
            for child in threads_children(server.process.pid):
                os.kill(child, signal.SIGKILL)
            has_crashed = True
        if status["swaps"]:
            break
        assert time.monotonic() < until, status
    assert "ended with -9" in status["error"]["message"]
    decision = next(update for update in status["updates"] if update["swapped"])
    gained = decision["gained"][str(decision["update"])]
    assert gained["value"] > 0
    assert gained["n"] == 24
    assert decision["gate_p"][str(decision["update"])] <= 0.05
    if path := os.environ.get("STATUS_FILE"):
        Path(path).write_text(json.dumps(status, indent=1))
    loaded, answer = status["loaded"], server.ask("the old cat", temperature=0)
    server.stop()
    resumed = Server(start_penchant, file, tmp_path)
    status = resumed.learning()
    assert status["loaded"]["update"] >= loaded["update"]
    assert status["traffic"]["recorded"] >= 24
    if status["loaded"] == loaded:
        assert resumed.ask("the old cat", temperature=0) == answer
    if path := os.environ.get("STATUS_FILE"):
        Path(path).write_text(json.dumps(status, indent=1))
    resumed.stop()


WORDS = ("the", "old", "cat", "dog", "a", "bird", "red", "small")


def threads_children(pid):
    """Child processes of any thread of a process."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]
