"""Files for dialogue.yaml, from public health questions, counsellors' answers and doctors' visits.

    python examples/recipes/counselling.py DATA OUT

DATA holds counsel_chat/pairs.jsonl (question_id, prompt, chosen, rejected, upvotes_chosen, upvotes_rejected),
medquad/qa.jsonl (focus, question, answer), mts_dialog/MTS-Dialog-TrainingSet.csv (ID, section_text, dialogue), and
openbookqa/train.jsonl and arc_easy/train.jsonl (instruction). Everything is drawn from one seed.
"""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HEALTH = 350
VISITS = 150
SHORTEST = 12

Row = dict[str, Any]


def read(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write(file: Path, rows: Iterable[Row]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def mended(text: str) -> str:
    """Sentences that were run together ("...help.Good luck") apart again."""
    return re.sub(r"(?<=[a-z][.!?])(?=[A-Z])", " ", text)


def counsel(data: Path) -> list[Row]:
    """Counsellors' answers and their votes, each once."""
    rows: dict[tuple[str, str], Row] = {}
    for pair in read(data / "counsel_chat" / "pairs.jsonl"):
        for side in ("chosen", "rejected"):
            question, answer = mended(pair["prompt"]), mended(pair[side])
            row = {
                "question": question,
                "answer": answer,
                "votes": pair[f"upvotes_{side}"],
                "topic": pair["question_id"],
            }
            rows.setdefault((question, answer), row)
    return list(rows.values())


def health(data: Path) -> tuple[list[Row], list[Row]]:
    """Questions and answers about half of the topics; the answers of the other half."""
    rows = {row["question"]: row for row in read(data / "medquad" / "qa.jsonl")}.values()
    topics = sorted({row["focus"] for row in rows})
    random.Random(0).shuffle(topics)
    chosen_topics = set(topics[: len(topics) // 2])
    chosen_rows = [
        {"question": row["question"], "answer": row["answer"].removeprefix("Summary : "), "topic": row["focus"]}
        for row in rows
        if row["focus"] in chosen_topics
    ]
    return random.Random(0).sample(chosen_rows, HEALTH), [row for row in rows if row["focus"] not in chosen_topics]


def visits(data: Path) -> tuple[list[Row], list[Row]]:
    """Dialogues of messages, each up to one longer reply of the doctor; and the other dialogues' rows."""
    with (data / "mts_dialog" / "MTS-Dialog-TrainingSet.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    random.Random(0).shuffle(rows)
    rows_by_prompt: dict[str, Row] = {}
    for number, row in enumerate(rows):
        turns = re.findall(r"^(Doctor|Patient): (.*)$", row["dialogue"].replace("\r", ""), re.MULTILINE)
        messages = [{"role": role.lower(), "content": text.strip()} for role, text in turns]
        for n in range(1, len(messages)):
            long_enough = len(messages[n]["content"].split()) >= SHORTEST
            if messages[n]["role"] == "doctor" and messages[n - 1]["role"] == "patient" and long_enough:
                window = messages[max(0, n - 3) : n + 1]
                # An earlier reply of the doctor in it would be an answer of its own.
                if sum(message["role"] == "doctor" for message in window[1:]) == 1:
                    rows_by_prompt.setdefault(window[-2]["content"], {"messages": window, "topic": row["ID"]})
                    break
        if len(rows_by_prompt) == VISITS:
            return list(rows_by_prompt.values()), rows[number + 1 :]
    return list(rows_by_prompt.values()), []


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    data, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    answers, (health_rows, other_rows), (replies, unused) = counsel(data), health(data), visits(data)
    write(out / "counsel.jsonl", answers)
    write(out / "health.jsonl", health_rows)
    write(out / "visits.jsonl", replies)
    questions = [row["instruction"] for name in ("openbookqa", "arc_easy") for row in read(data / name / "train.jsonl")]
    general = [f"{row['question']} {row['answer']}" for row in other_rows] + questions
    general += [text for row in unused for text in (row["section_text"], row["dialogue"])]
    write(out / "general.jsonl", [{"text": text} for text in general])
    # What a classifier takes for empathic: counsellors, and not encyclopaedias and doctors' questions.
    other = [row["answer"] for row in other_rows] + [row["messages"][-1]["content"] for row in replies]
    labelled = [(row["answer"], True) for row in answers] + [(text, False) for text in other]
    write(out / "empathic.jsonl", [{"completion": text, "label": label} for text, label in labelled])


if __name__ == "__main__":
    main()
