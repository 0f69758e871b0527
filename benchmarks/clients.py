"""One conversation with a tool call by each agent framework, through `penchant serve` on a tiny model.

    python benchmarks/clients.py [--out benchmarks/results]

AutoGen and Semantic Kernel are installed in environments of their own, made the first time. The model has random
weights, which only the grammar of a required call constrains, so what is shown is the protocol and not the answer: the
framework's client offers its tool, reads the call, runs the function, sends the result back and gets a text.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from environments import AUTOGEN, SEMANTIC_KERNEL, autogen_python, semantic_kernel_python

TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function | tojson }}\n{% endfor %}{% for m in messages %}{{ m.role }}: "
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}\n{% endfor %}"
)

AUTOGEN_PROGRAM = """
import asyncio, json, sys
from importlib.metadata import version
from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import ModelInfo
from autogen_ext.models.openai import OpenAIChatCompletionClient

calls = []

async def light(on: bool) -> str:
    "Switches the light."
    calls.append(on)
    return "the light is " + ("on" if on else "off")

class Requiring(OpenAIChatCompletionClient):
    "Requires a call where tools are offered: random weights call nothing of their own accord."
    async def create(self, messages, *, tools=(), tool_choice="auto", **options):
        choice = "required" if tools else tool_choice
        return await super().create(messages, tools=tools, tool_choice=choice, **options)

async def main():
    info = ModelInfo(vision=False, function_calling=True, json_output=False, family="unknown", structured_output=False)
    client = Requiring(model="m", base_url=sys.argv[1], api_key="none", model_info=info, max_tokens=64, seed=1)
    agent = AssistantAgent("helper", client, tools=[light], reflect_on_tool_use=True, system_message="Be short.")
    result = await agent.run(task="Switch the light on.")
    kinds = [type(message).__name__ for message in result.messages]
    last = result.messages[-1]
    usage = [m.models_usage.completion_tokens for m in result.messages if m.models_usage]
    await client.close()
    print(json.dumps({"calls": calls, "events": kinds, "text": str(last.content), "tokens": usage}))

asyncio.run(main())
"""

SEMANTIC_KERNEL_PROGRAM = """
import asyncio, json, sys
from openai import AsyncOpenAI
from semantic_kernel import Kernel
from semantic_kernel.connectors.ai.function_choice_behavior import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistory
from semantic_kernel.functions import kernel_function

calls = []

class Lamp:
    @kernel_function(name="light", description="Switches the light.")
    def light(self, on: bool) -> str:
        calls.append(on)
        return "the light is " + ("on" if on else "off")

async def main():
    kernel = Kernel()
    service = OpenAIChatCompletion(ai_model_id="m", async_client=AsyncOpenAI(base_url=sys.argv[1], api_key="none"))
    kernel.add_service(service)
    kernel.add_plugin(Lamp(), plugin_name="lamp")
    behavior = FunctionChoiceBehavior.Required(maximum_auto_invoke_attempts=1)
    settings = OpenAIChatPromptExecutionSettings(max_tokens=64, seed=1, function_choice_behavior=behavior)
    history = ChatHistory(system_message="Be short.")
    history.add_user_message("Switch the light on.")
    answer = await service.get_chat_message_content(history, settings, kernel=kernel)
    kinds = [type(item).__name__ for message in history for item in message.items]
    usage = [m.metadata["usage"].completion_tokens for m in [*history, answer] if m.metadata.get("usage")]
    print(json.dumps({"calls": calls, "events": kinds, "text": str(answer.content), "tokens": usage}))

asyncio.run(main())
"""

TOOL_EVENTS = {"ToolCallRequestEvent", "ToolCallExecutionEvent", "FunctionCallContent", "FunctionResultContent"}
"""Events of a call and of its result, by either framework's names."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the table")
    options = parser.parse_args()
    programs = {
        f"autogen-agentchat {AUTOGEN}": (autogen_python(), AUTOGEN_PROGRAM),
        f"semantic-kernel {SEMANTIC_KERNEL}": (semantic_kernel_python(), SEMANTIC_KERNEL_PROGRAM),
    }
    with tempfile.TemporaryDirectory() as folder, serving(build_model(Path(folder) / "m")) as address:
        rows = {name: converse(python, program, address) for name, (python, program) in programs.items()}
        failed = requests_failed(address)
    lines = [f"{date.today()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; a random Llama by penchant serve"]
    for name, row in rows.items():
        lines.append(f"{name:<26} {'passed' if is_whole(row) else 'FAILED'}  {json.dumps(row)}")
    lines.append(f"requests that the server refused or failed: {failed}")
    text = "\n".join(lines)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{date.today()}-cpu-clients.txt").write_text(text + "\n")
    return 0 if all(map(is_whole, rows.values())) and not failed else 1


def build_model(folder: Path) -> Path:
    """A random Llama with a chat template that renders tools."""
    from transformers import AutoTokenizer

    from penchant.recipes.small_llama import Sizes, build_small_llama

    text = 'light true false {"name": "light", "arguments": {"on": true}} tool user assistant'
    build_small_llama(folder, [text], Sizes(300, 32, 1, 2, 2048), seed=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """A server's address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    command = [sys.executable, "-m", "penchant", "serve", f"m={model}", "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the server does not start") from None
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def converse(python: Path, program: str, address: str) -> dict[str, object]:
    """What one client's conversation came to; `error` where it ended with one."""
    command = [str(python), "-c", program, f"{address}/v1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if result.returncode:
        return {"error": result.stderr.strip().splitlines()[-1]}
    row: dict[str, object] = json.loads(result.stdout.strip().splitlines()[-1])
    return row


def is_whole(row: dict[str, object]) -> bool:
    """Whether a tool ran once with a true or false, its result went back, and a text was answered."""
    calls, events = row.get("calls"), row.get("events")
    return (
        isinstance(calls, list)
        and len(calls) == 1
        and isinstance(calls[0], bool)
        and isinstance(events, list)
        and len(TOOL_EVENTS.intersection(events)) == 2
        and bool(row["text"])
    )


def requests_failed(address: str) -> int:
    """Number of answers that failed or were cancelled, by the server's own count."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as reply:
        counts = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if not line.startswith("#"))
    return int(counts["penchant_failed_total"]) + int(counts["penchant_cancelled_total"])


if __name__ == "__main__":
    sys.exit(main())
