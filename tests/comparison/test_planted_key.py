"""A judge's key is in no file that a comparison writes, and in nothing it shows."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from penchant.cli.main import run

KEY = "sk-planted-0123456789"


@pytest.fixture
def judge():
    """An endpoint that prefers the first answer, and its list of keys it was sent."""
    keys: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            keys.append(self.headers["Authorization"])
            content = json.dumps({"choices": [{"message": {"content": "[[A]]"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", keys
    server.shutdown()


@pytest.mark.slow
def test_a_planted_key_is_found_nowhere(write_bench, tmp_path, judge, monkeypatch, capfd):
    url, keys = judge
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    measure = {"samples": 2, "max_new_tokens": 4, "judge": {"judge": {"url": url, "model": "m"}}}
    file = write_bench(tmp_path, methods=["dpo", "ipo"], seeds=[0, 1], measure=measure)
    code = run(["compare", str(file)])
    captured = capfd.readouterr()
    assert code == 0, captured.err
    assert set(keys) == {f"Bearer {KEY}"}
    assert KEY not in captured.out + captured.err
    paths = [path for root in (tmp_path, Path(os.environ["PENCHANT_CACHE"])) for path in root.rglob("*")]
    files = [path for path in paths if path.is_file()]
    assert {"config.yaml", "run.json", "compare.json", "compare.md"} <= {path.name for path in files}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
