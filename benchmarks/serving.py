"""Requests a second and seconds to the first token: `penchant serve` and llama.cpp's server on one GGUF file.

    python benchmarks/serving.py MODEL [--clients 1,8,64,200] [--out benchmarks/results]

Both servers have one thread and the same client: plain HTTP, one connection for each request, greedy answers streamed
from /v1/completions. The servers take turns, each in a process of its own. llama.cpp's server comes with the package
xllamacpp, in an environment of its own that is made the first time; where it cannot be installed, that is said and
Penchant is measured alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from environments import LLAMA_CPP, llama_cpp_python

ROWS = 64
"""Answers that either server writes together at most."""

WORDS = ["Once", "upon", "a", "time", "there", "was", "little", "girl", "named", "Lily", "and", "the", "big", "dog"]

LLAMA_CPP_SERVER = """
import sys, time
import xllamacpp
path, port, rows, context = sys.argv[1], *map(int, sys.argv[2:])
parameters = xllamacpp.CommonParams()
parameters.model.path = path
parameters.port = port
parameters.n_parallel = rows
parameters.n_ctx = rows * context
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
parameters.verbosity = 0
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
time.sleep(3600)
"""


@dataclass(frozen=True)
class Request:
    """How one request went.

    Attributes:
        first_token: seconds until it came.
        seconds: until the end.
    """

    first_token: float
    seconds: float
    tokens: int


@dataclass(frozen=True)
class Run:
    """The requests that succeeded in one run, and its seconds."""

    requests: list[Request]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Llama's folder")
    parser.add_argument("--clients", default="1,8,64,200")
    parser.add_argument("--requests", type=int, default=32, help="at least; each client sends at least two")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "model.gguf"
        export = [sys.executable, "-m", "penchant", "export", options.model, str(gguf), "--type", "f32"]
        subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
        text = table(gguf, options)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{date.today()}-cpu-serving.txt").write_text(text + "\n")


def table(gguf: Path, options: argparse.Namespace) -> str:
    """All measurements as text."""
    commands = {"penchant": penchant_command(gguf)}
    notes = []
    try:
        commands["llama.cpp"] = [str(llama_cpp_python()), "-c", LLAMA_CPP_SERVER, str(gguf)]
    except subprocess.CalledProcessError as error:
        notes.append(f"llama.cpp's server (xllamacpp {LLAMA_CPP}) cannot be installed here: {error}")
    lines = [
        (
            f"{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
            f"{os.getloadavg()[0]:.1f} before; {Path(options.model).name} as GGUF in f32, one thread for each server,"
        ),
        (
            f"at most {ROWS} answers together, {options.tokens} tokens an answer; medians of {options.repeats} runs "
            "that took turns"
        ),
        *notes,
        f"{'server':<10} {'clients':>7} {'requests/s':>10} {'tokens/s':>9} {'first token, s':>15} {'95 %':>7} failed",
    ]
    counts = [int(clients) for clients in options.clients.split(",")]
    texts: dict[str, str] = {}
    runs: dict[tuple[str, int], list[Run]] = {(name, clients): [] for clients in counts for name in commands}
    for _ in range(options.repeats):
        for name, command in commands.items():
            with serving(name, command) as address:
                texts[name] = asyncio.run(first_text(address))
                for clients in counts:
                    began = time.monotonic()
                    requests = asyncio.run(load(address, clients, options))
                    runs[name, clients].append(Run(requests, time.monotonic() - began))
    lines += [row(name, clients, runs[name, clients], options) for clients in counts for name in commands]
    agree = len(set(texts.values())) == 1
    lines.append(f"the servers' greedy answers to one prompt are {'equal' if agree else f'not equal: {texts}'}")
    return "\n".join(lines)


def row(name: str, clients: int, runs: list[Run], options: argparse.Namespace) -> str:
    """One line of the table."""
    failed = sum(number_of_requests(clients, options) - len(run.requests) for run in runs)
    if not all(run.requests for run in runs):
        return f"{name:<10} {clients:>7} nothing was answered"
    rate = statistics.median(len(run.requests) / run.seconds for run in runs)
    speed = statistics.median(sum(request.tokens for request in run.requests) / run.seconds for run in runs)
    firsts = [sorted(request.first_token for request in run.requests) for run in runs]
    median = statistics.median(statistics.median(values) for values in firsts)
    late = statistics.median(values[int(0.95 * (len(values) - 1))] for values in firsts)
    return f"{name:<10} {clients:>7} {rate:>10.1f} {speed:>9.0f} {median:>15.3f} {late:>7.3f} {failed}"


def number_of_requests(clients: int, options: argparse.Namespace) -> int:
    """Requests of one run."""
    return max(options.requests, 2 * clients)


def penchant_command(gguf: Path) -> list[str]:
    """What starts our server, but for its port."""
    limits = ["--batch", str(ROWS), "--waiting", "1024", "--max-tokens", "256"]
    return [sys.executable, "-m", "penchant", "serve", f"model={gguf}", *limits]


@contextmanager
def serving(name: str, command: list[str]) -> Iterator[tuple[str, int]]:
    """A server's host and port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    arguments = ["--port", str(port)] if name == "penchant" else [str(port), str(ROWS), "512"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    process.kill()
                    raise RuntimeError(f"{name} does not start: {process.stderr.read().decode()[-2000:]}") from None
                time.sleep(0.1)
        yield "127.0.0.1", port
    finally:
        process.kill()
        process.communicate()


async def load(address: tuple[str, int], clients: int, options: argparse.Namespace) -> list[Request]:
    """Requests by so many clients at a time, each sending its next when it has been answered; those that succeeded."""
    draw = random.Random(0)
    prompts = [" ".join(draw.choices(WORDS, k=8)) for _ in range(number_of_requests(clients, options))]
    answers: list[Request] = []

    async def client() -> None:
        while prompts:
            _, request = await ask(address, prompts.pop(), options.tokens)
            if request is not None:
                answers.append(request)

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def first_text(address: tuple[str, int]) -> str:
    """One answer, which also warms the server up."""
    text, _ = await ask(address, "Once upon a time", 24)
    return text


async def ask(address: tuple[str, int], prompt: str, tokens: int) -> tuple[str, Request | None]:
    """One streamed answer; None where it failed."""
    body = json.dumps(
        {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        | {"stream_options": {"include_usage": True}}
    ).encode()
    began, first_token_seconds, tokens_used, parts = time.monotonic(), None, 0, []
    reader, writer = await asyncio.open_connection(*address)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {address[0]}\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            part = json.loads(line[6:])
            tokens_used = (part.get("usage") or {}).get("completion_tokens", tokens_used)
            text = "".join(choice.get("text") or "" for choice in part.get("choices", []))
            if text and first_token_seconds is None:
                first_token_seconds = time.monotonic() - began
            parts.append(text)
    finally:
        writer.close()
    if first_token_seconds is None or not tokens_used:
        return "", None
    return "".join(parts), Request(first_token_seconds, time.monotonic() - began, tokens_used)


if __name__ == "__main__":
    main()
