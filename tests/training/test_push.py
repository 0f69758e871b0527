"""`penchant push` against a stand-in of the hub on this machine: what is uploaded, and what is said when it is not."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from penchant.cli.main import run
from penchant.config.run import load_config
from penchant.models.saving import PROCESSOR_FILES
from penchant.training.run import train

TOKEN = "hf_secretsecretsecret"


@dataclass
class Hub:
    """Requests to the stand-in, and the statuses that it answers with.

    Attributes:
        refuse: by the end of a path the status to answer with.
        requests: path and authorization of each POST.
        files: by branch and name the bytes that were committed.
    """

    address: str = ""
    refuse: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    created: list[dict[str, object]] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def answer(self, path: str, body: bytes) -> tuple[int, object]:
        """Status and JSON of one POST, for the endpoints that huggingface_hub calls."""
        for end, status in self.refuse.items():
            if path.partition("?")[0].endswith(end):
                return status, {"error": f"refused, {TOKEN}"}
        kind, _, branch = path.partition("?")[0].removeprefix("/api/models/someone/model/").partition("/")
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.address}/someone/model", "id": "someone/model"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if kind == "branch":
            self.branches.append(branch)
            return 200, {}
        if kind == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names]
            return 200, {"files": modes}
        if kind == "commit":
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "header":
                    self.messages.append(line["value"]["summary"])
                else:
                    value = line["value"]
                    self.files[branch, value["path"]] = base64.b64decode(value["content"])
            url = f"{self.address}/someone/model/commit/{'c' * 40}"
            return 200, {"success": True, "commitUrl": url, "commitOid": "c" * 40}
        return 404, {"error": f"no such path: {path}"}


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.requests.append((self.path, self.headers.get("Authorization", "")))
            status, document = state.answer(self.path, body)
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", state.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model, tiny_pairs) -> Path:
    """A finished run's folder, with what is not to leave it."""
    import yaml

    root = tmp_path_factory.mktemp("push")
    values = {"model": str(tiny_model), "data": str(tiny_pairs), "output": str(root / "run")}
    training = {"max_steps": 1, "batch_size": 4}
    (root / "run.yaml").write_text(yaml.safe_dump({**values, "objective": {"name": "dpo"}, "training": training}))
    run_folder = train(load_config(root / "run.yaml"))
    (run_folder / "samples").mkdir()
    (run_folder / "samples" / "step-1.jsonl").write_text("{}")
    (run_folder / "best").mkdir()
    (run_folder / "best" / "model.safetensors").write_bytes(b"x")
    (run_folder / ".writing-model").write_bytes(b"x")
    return run_folder


def push(*arguments: object) -> int:
    return run(["push", *map(str, arguments)])


EXPECTED = {
    *("README.md", "config.yaml", "metrics.jsonl", "model.safetensors", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json"),
}


@pytest.mark.parametrize("streamed", [True, False])
def test_the_model_its_card_and_its_numbers(hub, folder, monkeypatch, streamed, capsys):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not streamed)  # two ways of huggingface_hub
    assert push(folder, "someone/model", "--json") == 0
    assert {name for branch, name in hub.files if branch == "main"} == EXPECTED
    for (_, name), content in hub.files.items():
        assert content == (folder / name).read_bytes()
    assert [(body["organization"], body["name"], "visibility" in body) for body in hub.created] == [
        ("someone", "model", False)
    ]
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document == {"url": f"{hub.address}/someone/model", "commit": "c" * 40, "files": sorted(EXPECTED)}
    assert {authorization for _, authorization in hub.requests} == {f"Bearer {TOKEN}"}
    assert TOKEN not in printed.out + printed.err


def test_the_processors_of_a_multimodal_model(hub, folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    for name in PROCESSOR_FILES:
        (copy / name).write_text("{}")
    assert push(copy, "someone/model") == 0
    assert {name for _, name in hub.files} == {*EXPECTED, *PROCESSOR_FILES}


def test_a_private_repository_a_branch_and_a_message(hub, folder):
    assert push(folder, "someone/model", "--private", "--revision", "v2", "--message", "The second") == 0
    assert hub.created[0]["visibility"] == "private"
    assert hub.branches == ["v2"]
    assert {branch for branch, _ in hub.files} == {"v2"}
    assert all(message.startswith("The second") for message in hub.messages)
    assert hub.messages


@pytest.mark.parametrize("end", ["/repos/create", "/preupload/main", "/commit/main"])
@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, "hf auth login"), (403, "may not write there"), (404, "no such repository"), (400, "answered 400")],
)
def test_a_refusal_is_one_message(hub, folder, end, status, reason, capsys):
    hub.refuse[end] = status
    assert push(folder, "someone/model") == 2
    printed = capsys.readouterr()
    assert reason in printed.err
    assert printed.err.startswith("error: someone/model: ")
    assert len(printed.err.strip().splitlines()) == 2  # what it is, and what to do
    assert "Traceback" not in printed.err
    assert TOKEN not in printed.out + printed.err


def test_without_a_token(hub, folder, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    hub.refuse["/repos/create"] = 401
    assert push(folder, "someone/model") == 2
    assert "hf auth login" in capsys.readouterr().err


def test_no_network(hub, folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert push(folder, "someone/model") == 2
    printed = capsys.readouterr()
    assert "the hub at http://127.0.0.1:9 cannot be reached" in printed.err
    assert TOKEN not in printed.err


def test_offline(hub, folder, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert push(folder, "someone/model") == 2
    assert "unset HF_HUB_OFFLINE" in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.parametrize("name", ["a/b/c", "with space", "-a", ""])
def test_no_name_of_a_repository(hub, folder, name, capsys):
    assert push(folder, "--", name) == 2 if name.startswith("-") else push(folder, name) == 2
    assert hub.files == {}
    assert "Traceback" not in capsys.readouterr().err


class TestNoModel:
    def test_no_folder(self, hub, tmp_path, capsys):
        assert push(tmp_path / "none", "someone/model") == 2
        assert "no such folder" in capsys.readouterr().err

    def test_a_run_without_its_weights(self, hub, folder, tmp_path, capsys):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
        assert push(tmp_path / "run", "someone/model") == 2
        assert "holds no model to push" in capsys.readouterr().err
        assert hub.requests == []


def test_an_adapter_whose_base_is_on_this_machine_alone(hub, tiny_model, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    from penchant.models.loading import load_model

    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(load_model(str(tiny_model)), lora).save_pretrained(tmp_path / "adapter")
    assert push(tmp_path / "adapter", "someone/model") == 0
    assert "penchant merge" in capsys.readouterr().out
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {name for _, name in hub.files}


def test_a_run_of_an_older_penchant_gets_its_card(hub, folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    (copy / "README.md").unlink()
    assert push(copy, "someone/model") == 0
    assert b"base_model:" in hub.files["main", "README.md"]
