"""A small Llama and its tokenizer, trained from nothing on text files: a starting model where none can be downloaded.

    python benchmarks/small_llama.py OUT FILE [FILE ...] [--steps 1500]

FILE is .jsonl (every text in a row is used, but ids) or plain text. OUT/model is the model, in Hugging Face format.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from penchant.config.run import parse_config
from penchant.data.groups import PreferenceGroup
from penchant.data.writing import write_groups
from penchant.recipes.small_llama import Sizes, build_small_llama
from penchant.training.run import train

CHARACTERS = 1200
"""A training text's length: about 300 tokens."""


def texts(file: Path) -> Iterator[str]:
    """Every text of a file."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.suffix == ".jsonl" else []:
        row = json.loads(line)
        yield from _strings({key: value for key, value in row.items() if "id" not in key})
    if file.suffix != ".jsonl":
        yield file.read_text(encoding="utf-8")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) > 20:
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def chunks(texts: list[str]) -> list[str]:
    """Texts of about `CHARACTERS`, cut at spaces; each text once."""
    pieces = []
    for text in dict.fromkeys(texts):
        words = text.split(" ")
        start = 0
        while start < len(words):
            end, size = start, 0
            while end < len(words) and size < CHARACTERS:
                size += len(words[end]) + 1
                end += 1
            pieces.append(" ".join(words[start:end]))
            start = end
    return [text for text in pieces if text.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    corpus = chunks([text for file in options.files for text in texts(file)])
    random.Random(options.seed).shuffle(corpus)
    print(f"{len(corpus)} texts, {sum(map(len, corpus)):,} characters")
    build_small_llama(options.out / "start", corpus, Sizes(), options.seed)
    write_groups(
        [PreferenceGroup("", (text,), id=str(i)) for i, text in enumerate(corpus)], options.out / "texts.jsonl"
    )
    values = {
        "model": str(options.out / "start"),
        "data": {"train": str(options.out / "texts.jsonl")},
        "output": str(options.out / "model"),
        "objective": {"name": "sft"},
        "training": {
            "max_steps": options.steps,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "seed": options.seed,
        },
        "evaluation": {"samples": 0},
        "checkpoints": {"every": 500},
    }
    train(parse_config(values, "small_llama"), resume=(options.out / "model" / "run.json").exists())


if __name__ == "__main__":
    main()
