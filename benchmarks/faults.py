"""Training under faults: kills, full disks, signals, second starts and damaged files, over all methods.

    python benchmarks/faults.py [--kills 200] [--seconds 1100] [--seed 0] [--only disk kills]

A tiny model is trained again and again. After every fault the run is resumed, and its weights, optimizer and metrics
must end with the bits of a run that nothing disturbed. Exit code 1 where anything was lost, or a traceback was shown.
Kills come last and stop after --seconds of the whole; the table tells how many there were. POSIX only; full disks need
the right to mount.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS = 40
WAIT = 180
REWARD = "def score(prompt, responses):\n    return [float(len(text) % 7) for text in responses]\n"


@dataclass
class Tally:
    """Faults of one kind, and what was wrong after them."""

    kind: str
    faults: int = 0
    problems: list[str] = field(default_factory=list)
    note: str = ""
    seconds: float = 0.0


class Launcher:
    """Starts the command line by forks of one process that has its imports: see tests/zygote.py."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, REPOSITORY / "tests" / "zygote.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def request(self, **values: object) -> int | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(values) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        result = json.loads(line) if line else "the launcher has ended"
        if isinstance(result, str):
            raise RuntimeError(result)
        return result

    def start(self, processes: int, *arguments: object) -> Run:
        """Start one run in so many processes."""
        self._count += 1
        stderr = self._folder / f"stderr-{self._count}.txt"
        port = str(free_port())
        pids = []
        for rank in range(processes):
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PENCHANT_CACHE": str(self._folder / "cache")}
            if processes > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            words = [*map(str, arguments)]
            folder = str(self._folder)
            pids.append(self.request(arguments=words, environment=environment, folder=folder, stderr=str(stderr)))
        return Run(self, pids, stderr)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


class Run:
    """The processes of one start."""

    def __init__(self, launcher: Launcher, pids: list[int | None], stderr: Path) -> None:
        self._launcher, self.stderr = launcher, stderr
        self._codes: dict[int, int | None] = {pid: None for pid in pids if pid is not None}

    def send(self, number: int, count: int | None = None) -> None:
        """Send a signal to the first processes that still run."""
        for pid in [pid for pid in self._codes if self._poll(pid) is None][:count]:
            os.kill(pid, number)

    def _poll(self, pid: int) -> int | None:
        if self._codes[pid] is None:
            self._codes[pid] = self._launcher.request(pid=pid)
        return self._codes[pid]

    @property
    def running(self) -> bool:
        return any(self._poll(pid) is None for pid in self._codes)

    def wait(self) -> list[int | None]:
        """The exit codes; processes that do not end are killed."""
        deadline = time.monotonic() + WAIT
        while self.running and time.monotonic() < deadline:
            time.sleep(0.01)
        self.send(signal.SIGKILL)
        while self.running:
            time.sleep(0.01)
        return list(self._codes.values())

    @property
    def message(self) -> str:
        return self.stderr.read_text(errors="replace") if self.stderr.exists() else ""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def write_inputs(folder: Path) -> None:
    """Two tiny models, groups of three scored candidates, and a reward."""
    script = """
import sys, random
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from penchant.data.groups import PreferenceGroup
from penchant.data.writing import write_groups
from penchant.recipes import demo_world as world

folder = Path(sys.argv[1])
tokenizer = world.build_tokenizer()
for seed in range(2):
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(config).save_pretrained(folder / f"model-{seed}")
    tokenizer.save_pretrained(folder / f"model-{seed}")
draw = random.Random(0)
groups = [PreferenceGroup(prompt, tuple(world.demonstration(prompt, draw) for _ in range(3)), scores=(2.0, 1.0, 0.0),
    id=str(n)) for n, prompt in enumerate(world.prompts(24, 0))]
write_groups(groups, folder / "groups.jsonl")
"""
    subprocess.run([sys.executable, "-c", script, folder], check=True)
    (folder / "reward.py").write_text(REWARD)


def methods(folder: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Every method, on one process and on two where it can be: name, processes, the run's keys."""
    from penchant.objectives import OBJECTIVES

    sampled = {
        "candidates": "sampled",
        "sampling": {"samples": 3, "every": 2, "max_new_tokens": 4},
        "reward": {"function": f"{folder / 'reward.py'}:score"},
    }
    for processes in (1, 2):
        for name in OBJECTIVES:
            keys: dict[str, Any] = {"objective": {"name": name}}
            if name == "multi_reference":
                keys["references"] = [str(folder / f"model-{seed}") for seed in range(2)]
            if name == "weighted_sum":
                keys["objective"]["parts"] = [{"name": "beta_dpo"}, {"name": "kto"}, {"name": "sft", "weight": 0.1}]
            if name == "rloo":
                keys |= sampled
            if processes == 1 or name not in ("preference_head", "rloo"):
                yield name, processes, keys
        if processes == 1:
            yield "dpo, LoRA", 1, {"objective": {"name": "dpo"}, "lora": {"rank": 2, "dropout": 0.1}}
            yield "dpo, sampled", 1, {"objective": {"name": "dpo"}, **sampled}


def write_run(folder: Path, keys: Mapping[str, Any], **sections: Any) -> Path:
    import yaml

    values: dict[str, Any] = {
        "model": str(folder / "model-0"),
        "data": {"train": str(folder / "groups.jsonl"), "held_out": 0.25},
        "output": str(folder / "unused"),
        "training": {"max_steps": STEPS, "batch_size": 6, "learning_rate": 1e-3},
        "evaluation": {"samples": 0},
        "logging": {"every": 1},
        "checkpoints": {"every": 3},
        **keys,
        **sections,
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def contents(run: Path) -> dict[str, bytes]:
    """What two equal runs share: weights, metrics, and the last checkpoint's tensors."""
    last = sorted((run / "checkpoints").glob("step-*"))[-1:]
    files = [
        *run.glob("*.safetensors"),
        run / "metrics.jsonl",
        *(file for step in last for file in step.glob("rank-*")),
    ]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def command(file: Path, run: Path) -> list[object]:
    return ["train", "--resume", run] if (run / "run.json").exists() else ["train", file, f"output={run}"]


def finish(launcher: Launcher, file: Path, run: Path, processes: int) -> str | None:
    """Resume to the end; what is wrong, if so."""
    launch = launcher.start(processes, *command(file, run))
    codes = launch.wait()
    return None if codes == [0] * processes else f"exit codes {codes}: {launch.message[-300:]}"


def kills(launcher: Launcher, folder: Path, count: int, seconds: float, draw: random.Random) -> Tally:
    """kill -9 at random moments of every method, from start-up to the last file."""
    tally, began = Tally("kill -9 at a random moment"), time.monotonic()
    reached: list[int] = []
    runs = list(methods(folder))
    draw.shuffle(runs)
    for number, (name, processes, keys) in enumerate(runs):
        goal = (number + 1) * count // len(runs)
        if tally.faults >= goal or time.monotonic() - began > seconds:
            continue
        file, intact, run = write_run(folder, keys), folder / "whole", folder / "killed"
        for path in (intact, run):
            shutil.rmtree(path, ignore_errors=True)
        start = time.monotonic()
        if problem := finish(launcher, file, intact, processes):
            tally.problems.append(f"{name}, {processes} processes, undisturbed: {problem}")
            continue
        duration = time.monotonic() - start
        reached.append(processes)
        faults_before = tally.faults
        while tally.faults < goal and time.monotonic() - began < seconds:
            launch = launcher.start(processes, *command(file, run))
            time.sleep(draw.uniform(0, 0.7 * duration))
            if not launch.running:
                launch.wait()
                shutil.rmtree(run, ignore_errors=True)  # It was done before it could be killed.
                continue
            # Of two, sometimes one alone: the other is ended as torchrun does.
            launch.send(signal.SIGKILL, draw.choice([1, processes]))
            time.sleep(0.05)
            launch.send(signal.SIGKILL)
            launch.wait()
            tally.faults += 1
        problem = finish(launcher, file, run, processes)
        if problem is None and contents(run) != contents(intact):
            problem = "other bits than the undisturbed run"
        if problem:
            tally.problems.append(f"{name}, {processes} processes, {tally.faults - faults_before} kills: {problem}")
    two = sum(processes == 2 for processes in reached)
    tally.note = (
        f"of {len(reached)} runs, {two} on two processes: other methods or numbers of processes each; same bits"
    )
    tally.seconds = time.monotonic() - began
    return tally


def signals(launcher: Launcher, folder: Path, draw: random.Random) -> Tally:
    """SIGINT, SIGTERM and SIGHUP, on one process and on one or both of two."""
    tally, began = Tally("SIGINT, SIGTERM, SIGHUP"), time.monotonic()
    file = write_run(folder, {"objective": {"name": "dpo"}}, training={"max_steps": 100_000, "batch_size": 6})
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        for processes, count in ((1, 1), (2, 1), (2, 2)):
            for _ in range(2):
                run = folder / "signalled"
                shutil.rmtree(run, ignore_errors=True)
                launch = launcher.start(processes, "train", file, f"output={run}")
                while launch.running and not last_step(run):
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 0.5))
                launch.send(number, count)
                codes = launch.wait()
                tally.faults += 1
                steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")]
                if codes != [128 + number] * processes or max(steps, default=-1) != last_step(run):
                    problem = f"exit codes {codes}, checkpoints {steps}, last step {last_step(run)}"
                    tally.problems.append(f"{number.name}, {processes} processes: {problem}")
    tally.note = "the step finished and saved on all ranks; exit codes 130, 143, 129"
    tally.seconds = time.monotonic() - began
    return tally


def last_step(run: Path) -> int:
    log = run / "metrics.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def locks(launcher: Launcher, folder: Path) -> Tally:
    """A second start and a second --resume on the folder of a run in progress."""
    tally, began = Tally("second start on one folder"), time.monotonic()
    file = write_run(folder, {"objective": {"name": "dpo"}}, training={"max_steps": 100_000, "batch_size": 6})
    run = folder / "locked"
    for processes in (1, 2):
        shutil.rmtree(run, ignore_errors=True)
        holder = launcher.start(processes, "train", file, f"output={run}")
        while holder.running and not last_step(run):
            time.sleep(0.01)
        for _ in range(3):
            for words in (("train", file, f"output={run}"), ("train", "--resume", run)):
                second = launcher.start(1, *words)
                codes = second.wait()
                tally.faults += 1
                if codes != [2] or "another process is writing this folder" not in second.message:
                    tally.problems.append(f"exit codes {codes}: {second.message[-300:]}")
        holder.send(signal.SIGKILL)
        holder.wait()
        successor = launcher.start(1, "train", "--resume", run)
        time.sleep(3)
        if not successor.running:
            tally.problems.append(f"not free after a kill: {successor.message[-300:]}")
        successor.send(signal.SIGKILL)
        successor.wait()
    tally.note = "each refused with the holder's process id; free after the holder was killed"
    tally.seconds = time.monotonic() - began
    return tally


def damage(launcher: Launcher, folder: Path, draw: random.Random) -> Tally:
    """Every file of a run in two of four ways: cut, zeros, emptied, one bit flipped; then `train --resume`."""
    tally, began = Tally("damaged file of a run"), time.monotonic()
    file, intact, run = write_run(folder, {"objective": {"name": "beta_dpo"}}), folder / "whole", folder / "damaged"
    shutil.rmtree(intact, ignore_errors=True)
    if problem := finish(launcher, file, intact, 1):
        tally.problems.append(problem)
    names = [path.relative_to(intact) for path in sorted(intact.rglob("*")) if path.is_file()]
    expected, refusals = contents(intact), 0
    for name in names:
        content = (intact / name).read_bytes()
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        for damaged in draw.sample([content[: len(content) // 2], b"\0" * len(content), b"", bytes(flipped)], 2):
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(intact, run)
            (run / name).write_bytes(damaged)
            launch = launcher.start(1, "train", "--resume", run)
            (code,) = launch.wait()
            tally.faults += 1
            refusals += code == 2
            if code not in (0, 2) or "Traceback" in launch.message:
                tally.problems.append(f"{name}: exit code {code}: {launch.message[-300:]}")
            elif code == 0 and {key: contents(run)[key] for key in expected} != expected:
                tally.problems.append(f"{name}: other bits, and nothing was said")
    tally.note = f"{refusals} refused by one error that names the file, {tally.faults - refusals} made no difference"
    tally.seconds = time.monotonic() - began
    return tally


def disks(launcher: Launcher, folder: Path) -> Tally:
    """A file system that gets a little more room after each full disk, until a run gets through."""
    tally, began = Tally("full disk"), time.monotonic()
    mount = folder / "mount"
    mount.mkdir()
    mount_tmpfs = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", mount]
    mounted = subprocess.run(mount_tmpfs, capture_output=True, check=False)
    if mounted.returncode:
        tally.note = "NOT DONE: no file system can be mounted here"
        return tally
    try:
        file, intact, run = write_run(folder, {"objective": {"name": "dpo"}}), folder / "intact", mount / "run"
        shutil.rmtree(intact, ignore_errors=True)
        if problem := finish(launcher, file, intact, 1):
            tally.problems.append(problem)
        for attempt in range(200):
            subprocess.run(["mount", "-o", f"remount,size={8 + 72 * attempt}k", mount], check=True)
            launch = launcher.start(1, *command(file, run))
            (code,) = launch.wait()
            if code == 0:
                break
            tally.faults += 1
            if code != 2 or "the disk is full" not in launch.message or "Traceback" in launch.message:
                tally.problems.append(f"exit code {code}: {launch.message[-300:]}")
        if contents(run) != contents(intact):
            tally.problems.append("other bits than the run with room")
    finally:
        subprocess.run(["umount", "-l", mount], check=True)
    tally.note = "one clear error each; all bits equal to a run with room"
    tally.seconds = time.monotonic() - began
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=["disk", "signals", "locks", "damage", "kills"])
    options = parser.parse_args()
    draw, began = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_inputs(folder)
        launcher = Launcher(folder)
        parts: dict[str, Callable[[], Tally]] = {
            "disk": lambda: disks(launcher, folder),
            "signals": lambda: signals(launcher, folder, draw),
            "locks": lambda: locks(launcher, folder),
            "damage": lambda: damage(launcher, folder, draw),
            "kills": lambda: kills(launcher, folder, options.kills, options.seconds - (time.monotonic() - began), draw),
        }
        tallies = []
        for name in options.only or parts:
            tallies.append(parts[name]())
            print(f"{tallies[-1].kind}: {tallies[-1].faults} in {tallies[-1].seconds:.0f} s", flush=True)
            print(*tallies[-1].problems, sep="\n", flush=True)
        launcher.close()
    print("\n| fault | times | lost | seconds | |\n| --- | --- | --- | --- | --- |")
    for tally in tallies:
        row = (tally.kind, tally.faults, len(tally.problems), f"{tally.seconds:.0f}", tally.note)
        print("| " + " | ".join(map(str, row)) + " |")
    return int(any(tally.problems for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
