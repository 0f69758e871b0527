"""Files for dialogue.yaml, from public health questions, counsellors' answers and doctors' visits.

    python examples/recipes/counselling.py DATA OUT

DATA holds counsel_chat/, medquad/, mts_dialog/, openbookqa/ and ARC-Easy/ as their repositories have them; see
public_files.py. Everything is drawn from one seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from public_files import (
    Row,
    counsellors_answers,
    doctors_visits,
    health_questions,
    run_script,
    science_questions,
    write_rows,
)

HEALTH = 350
VISITS = 150
SHORTEST = 12


def health(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Questions and answers about half of the topics; the answers of the other half."""
    topics = sorted({row["focus"] for row in rows})
    random.Random(0).shuffle(topics)
    chosen_topics = set(topics[: len(topics) // 2])
    chosen_rows = [
        {"question": row["question"], "answer": row["answer"].removeprefix("Summary : "), "topic": row["focus"]}
        for row in rows
        if row["focus"] in chosen_topics
    ]
    return random.Random(0).sample(chosen_rows, min(HEALTH, len(chosen_rows))), [
        row for row in rows if row["focus"] not in chosen_topics
    ]


def visits(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Dialogues of messages, each up to one longer reply of the doctor; and the other dialogues' rows."""
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


def make_files(data: Path, out: Path) -> None:
    answers, science = counsellors_answers(data), science_questions(data)
    (health_rows, other_rows), (replies, unused) = health(health_questions(data)), visits(doctors_visits(data))
    write_rows(out / "counsel.jsonl", answers)
    write_rows(out / "health.jsonl", health_rows)
    write_rows(out / "visits.jsonl", replies)
    general = [f"{row['question']} {row['answer']}" for row in other_rows] + science
    general += [text for row in unused for text in (row["section_text"], row["dialogue"])]
    write_rows(out / "general.jsonl", [{"text": text} for text in general])
    # What a classifier takes for empathic: counsellors, and not encyclopaedias and doctors' questions.
    other = [row["answer"] for row in other_rows] + [row["messages"][-1]["content"] for row in replies]
    labelled = [(row["answer"], True) for row in answers] + [(text, False) for text in other]
    write_rows(out / "empathic.jsonl", [{"completion": text, "label": label} for text, label in labelled])


if __name__ == "__main__":
    run_script(make_files, __doc__)
