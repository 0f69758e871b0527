"""LoRA on a real model and real pairs: Penchant's losses, speed and memory beside TRL's.

    python benchmarks/real_models.py
    python benchmarks/speed/real_pairs.py real/smollm2 PAIRS.jsonl --steps 6

PAIRS.jsonl has text columns `prompt`, `chosen` and `rejected`; its first rows are taken in their order. Both sides
start from the same adapters (rank 16 on every linear layer), with the same rate and float32. As in run.py, losses must
agree step by step, and both must have seen the same number of tokens, before anything is said of times.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from report import text  # noqa: E402
from run import Disagreement, Failure, compare  # noqa: E402
from workloads import Group, Shape, Workload  # noqa: E402

RANK = 16


def real_workload(name: str, model: Path, batch: int, parts: int) -> Workload:
    """The workload of a Llama-like model's folder."""
    config = json.loads((model / "config.json").read_text())
    shape = Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        intermediate=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        tied=config["tie_word_embeddings"],
    )
    sides = ("penchant_lora", "trl_lora")
    asks = f"LoRA of rank {RANK} on {model.name}"
    # Lengths are those of the file.
    return Workload(name, asks, shape, sides, (0, 0), (0, 0), batch=batch, parts=parts, rank=RANK)


def write_pairs(pairs: Path, model: Path, folder: Path, steps: int, batch: int) -> list[list[Group]]:
    """Write the first pairs and a link to the model; the token ids of every step."""
    from penchant import read_groups, tokenize_groups
    from penchant.api import load_tokenizer

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()[: steps * batch]]
    if len(rows) < steps * batch:
        raise SystemExit(f"{pairs} has {len(rows)} rows; {steps} steps of {batch} need {steps * batch}")
    lines = [json.dumps({name: row[name] for name in ("prompt", "chosen", "rejected")}) + "\n" for row in rows]
    for name in ("pairs.jsonl", "groups.jsonl"):
        (folder / name).write_text("".join(lines), encoding="utf-8")
    (folder / "model").symlink_to(model.resolve())
    groups = read_groups(str(folder / "groups.jsonl")).groups
    tokenized, _ = tokenize_groups(groups, load_tokenizer(str(model)), max_length=10**6)
    ids: list[Group] = [(g.prompt.tolist(), [response.tolist() for response in g.responses]) for g in tokenized]
    return [ids[i : i + batch] for i in range(0, len(ids), batch)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--steps", type=int, default=6, help="counted")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--batch", type=int, default=8, help="pairs in a step")
    parser.add_argument("--parts", type=int, default=4, help="equal parts that TRL cuts a step into")
    parser.add_argument("--alternations", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=HERE.parent / ".work" / "real-pairs", help="folder for data")
    options = parser.parse_args()
    options.here, options.tiny = [], False
    workload = real_workload(options.pairs.stem, options.model, options.batch, options.parts)
    total = options.warmup + options.steps
    steps = write_pairs(options.pairs, options.model, options.work / "data", total, options.batch)
    left_out: list[Failure] = []
    try:
        result = compare(workload, workload.sides, options, options.work, steps, left_out)
    except (Disagreement, Failure) as error:
        print(error, file=sys.stderr)
        return 1
    print(text([result]))
    return int(bool(left_out))


if __name__ == "__main__":
    sys.exit(main())
