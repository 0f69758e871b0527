"""What a card says of Penchant in ten minutes: python benchmarks/gpu_suite.py [--minutes 9] [--output FILE.json]

One command on a machine with one GPU. Its parts, in the order of their value:

    card          names and versions; rates of copies, launches and matrix products
    correctness   attention against float64, models in float32 and bfloat16, two runs with the same bits
    ours          a step of pairs and of groups of eight at three token budgets: time, memory, launches, waits
    compiling     seconds without torch's cache of compiled kernels, with it, and graphs of further lengths
    peers         TRL in several numbers of parts; Liger, flash-pref and Unsloth where they are installed
    large         LoRA of the shape of Llama-3.1-8B
    switches      what each step towards a fast GPU is worth: runs with one of them off

Every item runs in a process of its own, made by fork from one that has imported the libraries and has not touched the
card: a failure stays with its item, and an item that hangs is ended. Weights are made on the card. Items that do not
start within their part's share of the time run at the end, if any is left; what the clock cut is named. The figures so
far are in the file after every item. Exit status 1 where an item failed.

    python benchmarks/gpu_suite.py --tiny --device cpu     # the same code anywhere in a minute; its times mean nothing
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

PROCESS_START = time.monotonic()
"""When this process began to import libraries, which takes tens of seconds on a fresh machine."""

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT / "src"), str(HERE), str(HERE / "speed")]
WORK = HERE / ".work" / "gpu-suite"
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    # Where a library asks whether there is a card, torch then asks the driver's monitor, and leaves the card alone.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # The first run of a suite compiles without a cache, whatever ran here before.
    "TORCHINDUCTOR_CACHE_DIR": str(WORK / "compiled" / "inductor"),
    "TRITON_CACHE_DIR": str(WORK / "compiled" / "triton"),
}

import peft  # noqa: E402, F401
import torch  # noqa: E402
import transformers  # noqa: E402
from gpu_parts.card import card_items  # noqa: E402
from gpu_parts.compiling import compile_items  # noqa: E402
from gpu_parts.correctness import WrongNumbers, correctness_items  # noqa: E402
from gpu_parts.peers import Missing, peer_items  # noqa: E402
from gpu_parts.setting import Figures, Item, Part, Setting  # noqa: E402
from gpu_parts.switches import switch_items  # noqa: E402
from gpu_parts.training import GROUPS, PAIRS, budget_items, large_items  # noqa: E402

import penchant.cli.main  # noqa: E402
import penchant.planning.train  # noqa: E402, F401

PARTS = (
    Part("card", 15, card_items),
    Part("correctness", 80, correctness_items),
    Part("ours", 150, budget_items),
    Part("compiling", 40, compile_items),
    Part("peers", 150, peer_items),
    Part("large", 80, large_items),
    Part("switches", 60, switch_items),
)

ITEM_SECONDS = 100
"""Time of an item, of nine minutes, after which it is ended."""

LEAST_SECONDS = 8
"""Time, of nine minutes, with less of which no item starts."""

LOG_LINES = 12
"""Last lines of a failed item's output that are printed."""

TABLE_LINES = 4
"""First lines of a table that are printed; the file has all."""

Status = Literal["done", "failed", "missing", "cut"]


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        status: ``missing`` where a peer is not installed; ``cut`` where the clock ended it or did not let it start.
        seconds: of its process.
        reason: why it is not done.
    """

    status: Status
    seconds: float
    figures: Figures
    reason: str = ""


class Suite:
    """The items that have ended, printed and written as they end.

    Args:
        minutes: after which nothing runs any more.
        output: the JSON file; None: named by the card, see `default_output`.
        start: when the clock began, by `time.monotonic`.
    """

    def __init__(self, setting: Setting, minutes: float, output: Path | None, start: float) -> None:
        self.setting, self.minutes = setting, minutes
        self._output = output
        self.outcomes: dict[str, dict[str, Outcome]] = {}
        self.start = start

    @property
    def output(self) -> Path:
        """The JSON file."""
        return self._output or default_output(self.setting)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    @property
    def left(self) -> float:
        """Seconds that the clock leaves."""
        return 60 * self.minutes - self.seconds

    def scaled(self, seconds: float) -> float:
        """A time of nine minutes as one of this suite's minutes."""
        return seconds * self.minutes / 9

    def run(self, parts: Sequence[Part]) -> None:
        """Run all items, those that had no room in their part's share at the end."""
        waiting: list[tuple[str, str, Item]] = []
        for part in parts:
            part_end = self.seconds + self.scaled(part.seconds)
            for name, item in part.items(self.setting).items():
                if min(part_end - self.seconds, self.left) < self.scaled(LEAST_SECONDS):
                    waiting.append((part.name, name, item))
                else:
                    self.run_item(part.name, name, item)
        for part_name, name, item in waiting:
            if self.left < self.scaled(LEAST_SECONDS):
                self.add(part_name, name, Outcome("cut", 0.0, {}, "not started"))
            else:
                self.run_item(part_name, name, item)

    def run_item(self, part: str, name: str, item: Item) -> None:
        """Run one item in a process of its own and add its outcome."""
        print(f"[{self.seconds:4.0f} s] {part}: {name} ...", flush=True)
        log = self.setting.work / "logs" / f"{part}-{len(self.outcomes.get(part, {}))}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        outcome = in_own_process(item, min(self.left, self.scaled(ITEM_SECONDS)), log)
        self.add(part, name, outcome)
        if outcome.status == "failed" and log.exists():
            lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            print(*(f"         | {line[:200]}" for line in lines), sep="\n", flush=True)

    def add(self, part: str, name: str, outcome: Outcome) -> None:
        """Print an outcome and write the file anew."""
        self.outcomes.setdefault(part, {})[name] = outcome
        self.setting.figures.setdefault(part, {})[name] = outcome.figures
        print(*described(outcome), sep="\n", flush=True)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.output.with_suffix(".part")
        unfinished.write_text(json.dumps(self.document(), indent=1) + "\n")
        unfinished.replace(self.output)

    def names(self, status: Status) -> list[str]:
        """Items of a status, ``part: item``."""
        pairs = ((part, name, outcome) for part, items in self.outcomes.items() for name, outcome in items.items())
        return [f"{part}: {name}" for part, name, outcome in pairs if outcome.status == status]

    def missing_packages(self) -> list[str]:
        """Why peers are missing, each reason once."""
        outcomes = (outcome for items in self.outcomes.values() for outcome in items.values())
        return list(dict.fromkeys(outcome.reason for outcome in outcomes if outcome.status == "missing"))

    def document(self) -> dict[str, Any]:
        """Everything that was measured, as JSON."""
        return {
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
            "device": self.setting.device,
            "tiny": self.setting.tiny,
            "minutes": self.minutes,
            "seconds": round(self.seconds, 1),
            "cut": self.names("cut"),
            "failed": self.names("failed"),
            "missing": self.names("missing"),
            "best": best(self.setting.figures),
            "parts": {
                part: {name: asdict(outcome) for name, outcome in items.items()}
                for part, items in self.outcomes.items()
            },
        }


def in_own_process(item: Item, limit: float, log: Path) -> Outcome:
    """The outcome of an item that runs in a fork of this process, which is ended after `limit` seconds.

    Args:
        log: file for what the item prints.
    """
    if torch.cuda.is_initialized():
        raise RuntimeError("this process uses the card, so that no process forked from it could")
    context, start = multiprocessing.get_context("fork"), time.monotonic()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_and_send, args=(item, sender, log))
    process.start()
    sender.close()
    outcome = Outcome("cut", 0.0, {}, f"ended after {limit:.0f} s")
    if receiver.poll(limit):
        try:
            outcome = receiver.recv()
        except EOFError:
            process.join(5)
            outcome = Outcome("failed", 0.0, {}, f"its process ended with code {process.exitcode}")
    # It leads a group, with the compiler's workers and a peer's process in it.
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.kill()
    process.join()
    return Outcome(outcome.status, round(time.monotonic() - start, 1), outcome.figures, outcome.reason)


def _run_and_send(item: Item, sender: Connection, log: Path) -> None:
    os.setsid()
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    for descriptor in (1, 2):
        os.dup2(sys.stdout.fileno(), descriptor)
    try:
        outcome = Outcome("done", 0.0, item())
    except Missing as missing:
        outcome = Outcome("missing", 0.0, {}, str(missing))
    except BaseException as error:  # SystemExit too, by which the command line ends.
        traceback.print_exc()
        figures = error.figures if isinstance(error, WrongNumbers) else {}
        outcome = Outcome("failed", 0.0, figures, f"{type(error).__name__}: {error}"[:300])
    sys.stdout.flush()
    sender.send(outcome)
    sender.close()
    os._exit(0)


def described(outcome: Outcome) -> list[str]:
    """Lines about an outcome: its numbers in one, tables below."""
    words = [f"{name} {number(value)}" for name, value in outcome.figures.items() if not isinstance(value, dict | list)]
    status = outcome.status if outcome.status == "done" else f"{outcome.status.upper()}: {outcome.reason}"
    lines = [f"         {status}, {outcome.seconds:.0f} s" + "".join(f"; {word}" for word in words)]
    for name, value in outcome.figures.items():
        if isinstance(value, dict) and value and name != "versions":
            lines += [f"           {name}: {key}: {cell}" for key, cell in [*value.items()][:TABLE_LINES]]
        elif isinstance(value, list) and name == "wrong":
            lines += [f"           wrong: {row}" for row in value]
    return lines


def number(value: object) -> str:
    """A figure with four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def best(figures: Mapping[str, Mapping[str, Figures]]) -> dict[str, Figures]:
    """For pairs and groups our fastest run beside TRL's, by milliseconds of a step."""
    result: dict[str, Figures] = {}
    for name in (PAIRS, GROUPS):
        sides = {
            side: [values | {"item": item} for item, values in items.items() if item.startswith(f"{name}, {word}")]
            for side, items, word in (
                ("ours", figures.get("ours", {}), ""),
                ("trl", figures.get("peers", {}), "TRL in"),
            )
        }
        fastest = {
            side: min((run for run in runs if "milliseconds" in run), key=lambda run: run["milliseconds"], default=None)
            for side, runs in sides.items()
        }
        keys = ("item", "milliseconds", "peak_mb")
        result[name] = {side: {key: run[key] for key in keys} for side, run in fastest.items() if run is not None}
        if len(result[name]) == 2:
            ours, trl = result[name]["ours"], result[name]["trl"]
            result[name]["times_as_fast"] = trl["milliseconds"] / ours["milliseconds"]
            result[name]["memory_ratio"] = ours["peak_mb"] / trl["peak_mb"]
    return result


def commit() -> str | None:
    """The commit that is measured, with a mark where files differ from it; None without git."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def default_output(setting: Setting) -> Path:
    """benchmarks/results/DATE-DEVICE-gpu-suite.json, as 2026-12-01-h200-gpu-suite.json; of a tiny run in .work."""
    device: str = setting.device
    if device == "cuda":
        name = setting.figures.get("card", {}).get("machine", {}).get("device", device)
        device = "-".join(re.findall(r"[a-z0-9]+", name.lower().replace("nvidia", "")))
    folder = HERE / (".work" if setting.tiny else "results")
    return folder / f"{datetime.date.today().isoformat()}-{device}-gpu-suite.json"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing runs any more")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/DATE-DEVICE-gpu-suite.json")
    # Asking for a card would use it.
    has_card = bool(torch.version.cuda or torch.version.hip)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if has_card else "cpu")
    parser.add_argument("--tiny", action="store_true", help="sizes for tests; times mean nothing")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="default: all")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for data, models and logs; emptied")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS, start: float | None = None) -> int:
    start = time.monotonic() if start is None else start
    options = parse(arguments)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    setting = Setting(options.device, options.tiny, options.work)
    if options.tiny:
        setting = replace(setting, warmup=1, steps=2)
    suite = Suite(setting, options.minutes, options.output, start)
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {options.minutes:g} minutes", flush=True
    )
    suite.run([part for part in parts if options.parts is None or part.name in options.parts])
    document = suite.document()
    print(*(f"{name}: {json.dumps(sides)}" for name, sides in document["best"].items()), sep="\n")
    for reason in suite.missing_packages():
        print(f"missing: {reason}")
    for status in ("failed", "cut"):
        for name in document[status]:
            print(f"{status}: {name}")
    print(f"{suite.seconds:.0f} s; written to {suite.output}")
    return int(bool(document["failed"]))


if __name__ == "__main__":
    sys.exit(main(start=PROCESS_START))
