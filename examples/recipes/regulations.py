"""Files for domain_expert.yaml from regulations, their definitions, and general health and science questions.

    python examples/recipes/regulations.py DATA OUT

DATA holds cfpb/, medquad/, openbookqa/ and ARC-Easy/ as their repositories have them; see public_files.py. Everything
is drawn from one seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from public_files import Row, health_questions, regulations, run_script, science_questions, write_rows

from penchant.api import DataError

PARAGRAPHS, SUMMARIES = 1000, 400
"""Maximum numbers of paragraphs to classify and to summarise."""
WORDS, SUMMARISED_WORDS = 40, 80
"""Maximum words of a paragraph to classify, and of one to summarise."""
REJECTED = 3


def shorten(text: str, n_words: int) -> str:
    words = text.split()
    return " ".join(words[:n_words]) + (" ..." if len(words) > n_words else "")


def general(health: Sequence[Row], science: Sequence[str]) -> list[Row]:
    """What the base reads: answers and questions of other fields."""
    return [{"text": f"{row['question']} {row['answer']}"} for row in health] + [{"text": text} for text in science]


def instructions(health: Sequence[Row]) -> list[Row]:
    """What the instruct sibling learns to follow, of another field."""
    kinds = [
        {"prompt": f"Name the kind of this question: {row['question']}\nKind:", "completion": f" {row['qtype']}"}
        for row in health
    ]
    topics = [
        {"prompt": f"Name the topic of this question: {row['question']}\nTopic:", "completion": f" {row['focus']}"}
        for row in health
    ]
    return kinds + topics


def tasks(paragraphs: Sequence[Row], draw: random.Random) -> list[Row]:
    """Which part a paragraph is from, and whether it is the rule or its interpretation."""
    pairs_by_text = {}
    for row in draw.sample(paragraphs, min(PARAGRAPHS, len(paragraphs))):
        text = shorten(row["text"], WORDS)
        pairs_by_text[text] = (
            {"prompt": f"Which part is this from? {text}\nPart:", "completion": f" {row['reg']}"},
            {"prompt": f"Is this the rule or an interpretation? {text}\nIt is:", "completion": f" {row['kind']}"},
        )
    return [row for pair in pairs_by_text.values() for row in pair]


def summaries(paragraphs: Sequence[Row], definitions: Sequence[Row], draw: random.Random) -> list[Row]:
    """Headings of paragraphs; definitions are left out, which the questions are about."""
    defined = {row["text"] for row in definitions}
    rows_by_text = {}
    for row in paragraphs:
        text = shorten(row["text"], SUMMARISED_WORDS)
        if row["heading"] and row["text"] not in defined and len(text.split()) >= 2 * len(row["heading"].split()):
            heading = row["heading"].rstrip(".:")
            rows_by_text[text] = {"prompt": f"Give this a heading: {text}\nHeading:", "completion": f" {heading}"}
    return draw.sample(list(rows_by_text.values()), min(SUMMARIES, len(rows_by_text)))


def preferences(definitions: Sequence[Row], draw: random.Random) -> list[Row]:
    """A term's definition against those of other terms."""
    defined: dict[tuple[str, str], Row] = {}
    for row in definitions:
        defined.setdefault((row["reg"], row["term"]), row)
    rows = []
    for key, row in defined.items():
        other_terms = [other for name, other in defined.items() if name != key and other["term"] != row["term"]]
        rows += [
            {
                "prompt": f"What does “{row['term']}” mean in part {row['reg']}?\nAnswer:",
                "chosen": f" {shorten(row['text'], WORDS)}",
                "rejected": f" {shorten(other['text'], WORDS)}",
            }
            for other in draw.sample(other_terms, min(REJECTED, len(other_terms)))
            if other["text"] != row["text"]
        ]
    return rows


def make_files(data: Path, out: Path) -> None:
    paragraphs, definitions = regulations(data)
    health, draw = health_questions(data), random.Random(0)
    sets = {
        "general": general(health, science_questions(data)),
        "instructions": instructions(health),
        "tasks": tasks(paragraphs, draw),
        "preferences": preferences(definitions, draw),
        "summaries": summaries(paragraphs, definitions, draw),
        "paragraphs": paragraphs,
        "definitions": definitions,
    }
    if empty := [name for name, rows in sets.items() if not rows]:
        raise DataError(f"nothing in it gives {empty[0]}", where=str(data), fix="give more paragraphs and definitions")
    for name, rows in sets.items():
        write_rows(out / f"{name}.jsonl", rows)


if __name__ == "__main__":
    run_script(make_files, __doc__)
