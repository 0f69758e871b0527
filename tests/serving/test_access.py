"""Access control: API key and host names."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from penchant.cli.main import run
from penchant.errors import ConfigError
from penchant.serving.access import Access, AccessGuard, host_name, is_loopback

KEY = "sk-3b1f"


def guarded(access: Access) -> TestClient:
    app = FastAPI()
    app.add_middleware(AccessGuard, access=access)

    @app.get("/health")
    @app.get("/v1/models")
    @app.get("/metrics")
    def answer() -> str:
        return "yes"

    return TestClient(app, base_url="http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        (f"Bearer {KEY}", 200),
        (f"bearer  {KEY}", 200),
        (f"Basic {KEY}", 401),
        (KEY, 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        (f"Bearer {KEY}x", 401),
        (f"Bearer {KEY[:-1]}", 401),
        ("Bearer é", 401),
    ],
)
def test_every_path_except_health_needs_the_key(header: str | None, status: int) -> None:
    client = guarded(Access.for_host("127.0.0.1", KEY))
    headers = {} if header is None else {"authorization": header.encode()}
    for path in ("/v1/models", "/metrics"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == status
        if status == 401:
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert KEY not in answer.text
    assert client.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("10.1.2.3", 200),
        ("[::1]:8000", 200),
        ("localhost:1", 200),
        ("LOCALHOST.", 200),
        ("models.example:8000", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("", 403),
    ],
)
def test_an_unknown_host_name_is_refused(host: str, status: int) -> None:
    client = guarded(Access.for_host("127.0.0.1", None, ["models.example"]))
    answer = client.get("/v1/models", headers={"host": host})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "host_not_allowed"
    open_client = guarded(Access.for_host("127.0.0.1", None, ["*"]))
    assert open_client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("header", "name"),
    [("a:80", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("A.b.:", "a.b"), ("a", "a")],
)
def test_names_without_ports(header: str, name: str) -> None:
    assert host_name(header) == name


def test_a_server_that_other_machines_reach_needs_a_key() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert is_loopback(host)
        assert Access.for_host(host, None).api_key is None
    for host in ("0.0.0.0", "::", "192.168.1.7", "models.example", ""):
        assert not is_loopback(host)
        with pytest.raises(ConfigError, match="no key is required"):
            Access.for_host(host, None)
        assert Access.for_host(host, KEY).api_key == KEY
    for key in ("", "a b", "é", "a\n"):
        with pytest.raises(ConfigError, match="the key is empty, or holds"):
            Access.for_host("127.0.0.1", key)


def test_the_command_needs_a_key_for_other_machines(tiny_model, monkeypatch, capsys) -> None:
    monkeypatch.delenv("PENCHANT_API_KEY", raising=False)
    assert run(["serve", f"m={tiny_model}", "--host", "0.0.0.0"]) == 2
    assert "PENCHANT_API_KEY" in capsys.readouterr().err


def test_the_key_is_read_from_the_environment(tiny_model, monkeypatch) -> None:
    served: list[Access] = []
    monkeypatch.setattr("penchant.serving.run.serve", lambda *arguments, **address: served.append(arguments[3]))
    monkeypatch.setenv("PENCHANT_API_KEY", KEY)
    command = ["serve", f"m={tiny_model}", "--host", "0.0.0.0", "--allowed-host", "a.example", "--allowed-host", "b"]
    assert run(command) == 0
    assert served == [Access(KEY, frozenset({"localhost", "0.0.0.0", "a.example", "b"}))]
