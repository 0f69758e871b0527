"""The committed example and the script that makes its files, with a few invented answers."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import counselling
import pytest

from penchant.config.run import load_section
from penchant.data.reading import read_groups
from penchant.recipes.dialogue.config import DialogueConfig
from penchant.recipes.dialogue.pipeline import dialogue

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "recipes"
NAMES = ["Asthma", "Gout", "Flu", "Acne", "Lupus", "Mumps", "Scurvy", "Tetanus", "Rabies", "Measles"]


def source(folder: Path) -> Path:
    """Invented files in the format that the script reads."""
    sets = {
        "counsel_chat/pairs": [
            {
                "question_id": str(n),
                "prompt": f"How do I live with {name}?",
                "chosen": f"I hear you about {name}.Talk to a friend {k}.",
                "rejected": f"Cheer up about {name}, {k}.",
                "upvotes_chosen": 3 + k,
                "upvotes_rejected": k,
            }
            for n, name in enumerate(NAMES)
            for k in range(2)
        ],
        "medquad/qa": [
            {
                "question": f"What is {name} {n} ?",
                "focus": f"{name} {n}",
                "qtype": "information",
                "answer": f"Summary : The illness number {n} makes people tired. A physician can help with it.",
            }
            for n in range(100)
            for name in NAMES
        ],
        "openbookqa/train": [{"instruction": f"Which is {word}?"} for word in NAMES],
        "arc_easy/train": [{"instruction": f"What is {word}?"} for word in NAMES],
    }
    for name, rows in sets.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "mts_dialog" / "MTS-Dialog-TrainingSet.csv"
    file.parent.mkdir()
    with file.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["ID", "section_header", "section_text", "dialogue"])
        for n in range(160):
            reply = f"Doctor: Then let us look at it together in {n} days, and please call me if it gets worse."
            table.writerow([n, "GENHX", f"Pain {n}.", f"Doctor: Hello.\r\nPatient: It hurts, {n}.\r\n{reply}"])
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    script = [sys.executable, str(EXAMPLES / "counselling.py"), str(source(folder / "data")), str(folder / "files")]
    subprocess.run(script, check=True)
    return folder


def test_example_files(files):
    def read(name):
        return [json.loads(line) for line in (files / "files" / f"{name}.jsonl").read_text().splitlines()]

    [counsel_row, *_] = counsel = read("counsel")
    assert len(counsel) == 4 * len(NAMES)
    assert counsel_row == {
        "question": "How do I live with Asthma?",
        "answer": "I hear you about Asthma. Talk to a friend 0.",
        "votes": 3,
        "topic": "0",
    }
    visits = read("visits")
    assert len(visits) == 150
    assert [message["role"] for message in visits[0]["messages"]] == ["doctor", "patient", "doctor"]
    # The base models' training texts contain none of the questions.
    questions = {row["question"] for row in read("health")}
    general = [row["text"] for row in read("general")]
    assert len(questions) == 350
    assert not any(text.startswith(tuple(questions)) for text in general)


@pytest.mark.slow
def test_example_runs(files, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    config = load_section(DialogueConfig, EXAMPLES / "dialogue.yaml", [f"output={tmp_path / 'out'}"])
    values = config.model_dump()
    for training in (values["sft"], values["new_models"], *values["methods"].values()):
        training["training"] |= {"max_steps": 1, "batch_size": 4}
    # Only one of the three models, and small.
    values["models"] = {"small": {"new": values["models"]["small"]["new"] | {"hidden": 32, "layers": 1}}}
    values |= {"seeds": [0, 1], "questions": 2, "answer_tokens": 2}
    results = dialogue(DialogueConfig(**values))
    assert set(results["evaluation"]["models"]["small"]) == {"base", "sft", "dpo", "simpo"}
    assert set(results["audit"]) == {"counsel", "health", "visits"}
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.slow
def test_example_of_a_real_model_runs(tmp_path, monkeypatch, real_folders):
    """As it stands in the file, with small models in place of the real ones, and shortened."""
    counselling.make_files(source(tmp_path / "data"), tmp_path / "runs" / "real" / "dialogue-files")
    monkeypatch.chdir(tmp_path)
    real_folders(tmp_path / "real")
    values = load_section(DialogueConfig, EXAMPLES.parent / "real" / "dialogue.yaml").model_dump()
    for training in (values["sft"], *values["methods"].values()):
        training["training"] |= {"max_steps": 1, "batch_size": 4}
    results = dialogue(DialogueConfig(**values | {"questions": 2, "answer_tokens": 2}))
    models = results["evaluation"]["models"]["smollm2"]
    assert set(models) == {"base", "sft", "dpo_votes", "dpo_styles"}
    assert {"bert_score", "similarity", "empathic", "supported"} <= set(models["dpo_votes"]["all"])
    groups = read_groups(Path("runs/real/dialogue/smollm2-dpo_votes-0/preferences_train.jsonl")).groups
    assert {group.source for group in groups} == {"counsel"}
