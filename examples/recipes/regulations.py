"""Files for domain_expert.yaml from regulations, their definitions, and general health and science questions.

    python examples/recipes/regulations.py DATA OUT

DATA holds cfpb/paragraphs.jsonl (text, section, reg, kind) and cfpb/definitions.jsonl (reg, term, text) of the Consumer
Financial Protection Bureau's regulations, medquad/qa.jsonl (question, answer, focus, qtype), and openbookqa/train.jsonl
and arc_easy/train.jsonl (instruction). Everything is drawn from one seed.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NAMES = {"1024": "X", "1003": "C"}
WORDS = 40
REJECTED = 3

Row = dict[str, Any]


def read(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write(file: Path, rows: Iterable[Row]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def short(text: str) -> str:
    words = text.split()
    return " ".join(words[:WORDS]) + (" ..." if len(words) > WORDS else "")


def general(data: Path) -> list[Row]:
    """What the base reads: answers and questions of other fields."""
    answers = [{"text": f"{row['question']} {row['answer']}"} for row in read(data / "medquad" / "qa.jsonl")]
    files = (data / name / "train.jsonl" for name in ("openbookqa", "arc_easy"))
    return answers + [{"text": row["instruction"]} for file in files for row in read(file)]


def instructions(data: Path) -> list[Row]:
    """What the instruct sibling learns to follow, of another field."""
    rows = {row["question"]: row for row in read(data / "medquad" / "qa.jsonl")}.values()
    kinds = [
        {"prompt": f"Name the kind of this question: {r['question']}\nKind:", "completion": f" {r['qtype']}"}
        for r in rows
    ]
    topics = [
        {"prompt": f"Name the topic of this question: {r['question']}\nTopic:", "completion": f" {r['focus']}"}
        for r in rows
    ]
    return kinds + topics


def tasks(data: Path, draw: random.Random) -> list[Row]:
    """Which regulation a paragraph is from, and whether it is the rule or its interpretation."""
    pairs_by_text = {}
    for row in draw.sample(read(data / "cfpb" / "paragraphs.jsonl"), 1000):
        text = short(row["text"])
        pairs_by_text[text] = (
            {"prompt": f"Which regulation is this from? {text}\nRegulation:", "completion": f" {NAMES[row['reg']]}"},
            {"prompt": f"Is this the rule or an interpretation? {text}\nIt is:", "completion": f" {row['kind']}"},
        )
    return [row for pair in pairs_by_text.values() for row in pair]


def preferences(data: Path, draw: random.Random) -> list[Row]:
    """A term's definition against those of other terms."""
    defined: dict[str, Row] = {}
    for row in read(data / "cfpb" / "definitions.jsonl"):
        defined.setdefault(f"{row['reg']} {row['term']}", row)
    rows = []
    for key, row in defined.items():
        prompt = f"What does “{row['term']}” mean in Regulation {NAMES[row['reg']]}?\nAnswer:"
        other_terms = [other for name, other in defined.items() if name != key and other["term"] != row["term"]]
        rows += [
            {"prompt": prompt, "chosen": f" {short(row['text'])}", "rejected": f" {short(other['text'])}"}
            for other in draw.sample(other_terms, REJECTED)
        ]
    return rows


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    data, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    write(out / "general.jsonl", general(data))
    write(out / "instructions.jsonl", instructions(data))
    write(out / "tasks.jsonl", tasks(data, draw))
    write(out / "preferences.jsonl", preferences(data, draw))
    for name in ("paragraphs", "definitions"):
        write(out / f"{name}.jsonl", read(data / "cfpb" / f"{name}.jsonl"))


if __name__ == "__main__":
    main()
