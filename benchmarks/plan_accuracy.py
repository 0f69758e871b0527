"""Is `penchant plan` right? Plans small runs, then does them, and prints what was predicted and what was measured.

    python benchmarks/plan_accuracy.py [--only NAME ...] [--steps 6] [--json OUT.json] [--work DIR]

Each side runs in a fresh process. Memory is the highest resident size over the counted steps (the kernel's mark is set
back before them); seconds are those of the fastest counted step, as what else the machine does only adds. Linux only.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

MODELS: dict[str, dict[str, Any]] = {
    "llama-23M": {"vocab_size": 32000, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6},
    "llama-152k": {"vocab_size": 151936, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32 4096": ("llama-23M", {"token_budget": 4096}),
    "fp32 1024": ("llama-23M", {"token_budget": 1024}),
    "bf16 4096": ("llama-23M", {"token_budget": 4096, "dtype": "bfloat16"}),
    "checkpointing 4096": ("llama-23M", {"token_budget": 4096, "gradient_checkpointing": True}),
    "LoRA 4096": ("llama-23M", {"token_budget": 4096, "lora": 16}),
    "LoRA bf16 4096": ("llama-23M", {"token_budget": 4096, "dtype": "bfloat16", "lora": 16}),
    "152k vocabulary 2048": ("llama-152k", {"token_budget": 2048}),
    "152k LoRA 2048": ("llama-152k", {"token_budget": 2048, "lora": 16}),
}
WARM_UP = 2


def build(folder: Path, shape: dict[str, Any]) -> None:
    """A model of random weights, and a tokenizer with a word for each of its rows."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    words = [f"w{i}" for i in range(shape["vocab_size"] - len(special))]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    heads = shape["hidden_size"] // 64
    config = LlamaConfig(
        **shape, num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=True, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def write_pairs(file: Path, groups: int = 64) -> None:
    """Pairs of random words: prompts of 40 to 160 tokens, responses of 30 to 130."""
    draw = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(f"w{draw.randrange(30000)}" for _ in range(draw.randint(low, high)))

    rows = [
        {"prompt": text(40, 160), "chosen": " " + text(30, 130), "rejected": " " + text(30, 130)} for _ in range(groups)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(folder: Path, name: str, steps: int) -> Path:
    """The YAML of one case."""
    model, settings = CASES[name]
    lora = settings.get("lora")
    values: dict[str, Any] = {
        "model": str(folder / model),
        "data": str(folder / "pairs.jsonl"),
        "output": str(folder / ("run-" + name.replace(" ", "-"))),
        "objective": {"name": "dpo"},
        "training": {
            **{key: value for key, value in settings.items() if key != "lora"},
            "batch_size": 16,
            "max_steps": WARM_UP + steps,
        },
        "logging": {"every": 1},
        "checkpoints": {"every": 1000},
    }
    if lora:
        values["lora"] = {"rank": lora}
    file = folder / (name.replace(" ", "-") + ".yaml")
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def measure(file: Path) -> None:
    """In a process of its own: train, and print the peak over the counted steps and each one's seconds."""
    import time

    from penchant.cli.main import keep_freed_memory
    from penchant.config.run import load_config
    from penchant.training.loop import Loop
    from penchant.training.run import train

    keep_freed_memory()  # as the command line does
    measurement: dict[str, Any] = {"peak": 0, "seconds": []}
    plain = Loop.step

    def step(self: Loop, pressed: bool = False) -> tuple[float, bool]:
        if self.state.step == WARM_UP:
            Path("/proc/self/clear_refs").write_text("5")
        start = time.perf_counter()
        result = plain(self, pressed)
        if self.state.step > WARM_UP:
            measurement["seconds"].append(time.perf_counter() - start)
            status = Path("/proc/self/status").read_text()
            measurement["peak"] = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        return result

    Loop.step = step  # type: ignore[method-assign]
    train(load_config(file))
    print(json.dumps(measurement))


def fresh(*arguments: str) -> dict[str, Any]:
    """The last line a new process prints, as JSON."""
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(process.stderr)
    answer: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    folder = options.work or Path(tempfile.mkdtemp(prefix="plan-accuracy-"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in MODELS.items():
        if not (folder / name).exists():
            build(folder / name, shape)
    write_pairs(folder / "pairs.jsonl")
    print(
        f"{'run':<22}{'MB counted':>11}{'at most':>9}{'measured':>10}{'/counted':>10}"
        f"{'s/step planned':>16}{'measured':>10}{'ratio':>7}"
    )
    rows = []
    for name in options.only:
        file = write_run(folder, name, options.steps)
        output = Path(yaml.safe_load(file.read_text())["output"])
        planned = fresh("-m", "penchant", "plan", str(file), "--json")
        actual = fresh(__file__, "--measure", str(file)) if not output.exists() else None
        if actual is None:
            raise SystemExit(f"{output}: it is there already; give another --work")
        row = {
            "run": name,
            "planned": planned["memory_mb"],
            "memory_counted_mb": planned["memory_mb"]["peak"] - planned["memory_mb"]["allocator"],
            "memory_at_most_mb": planned["memory_mb"]["peak"],
            "memory_mb": actual["peak"] / 2**20,
            "step_planned_seconds": planned["step_seconds"],
            "step_seconds": min(actual["seconds"]),
            "steps_seconds": actual["seconds"],
        }
        rows.append(row)
        excess = row["memory_mb"] / row["memory_counted_mb"]
        seconds = row["step_planned_seconds"] / row["step_seconds"]
        print(
            f"{name:<22}{row['memory_counted_mb']:>11.0f}{row['memory_at_most_mb']:>9.0f}{row['memory_mb']:>10.0f}{excess:>10.2f}"
            f"{row['step_planned_seconds']:>16.2f}{row['step_seconds']:>10.2f}{seconds:>7.2f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
