"""Texts with Unicode line separators are written and read back unchanged."""

from __future__ import annotations

import json

import pytest

from penchant.config.section import validated
from penchant.recipes.dialogue import evaluation
from penchant.recipes.dialogue.config import DialogueConfig
from penchant.recipes.dialogue.data import read_questions
from penchant.recipes.dialogue.evaluation import ModelVariant
from penchant.recipes.dialogue.pipeline import dialogue


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_questions_and_answers_are_read_back(tmp_path, tiny_model, monkeypatch, separator):
    rows = [
        {"question": f"One{separator}two {n}?", "answer": f"Rest{separator}well {votes}.", "r": votes}
        for n in range(8)
        for votes in (0, 2)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    source = {"file": str(tmp_path / "a.jsonl"), "pairs": "ratings", "rating": "r"}
    values = {"sources": {"a": source}, "models": {"m": {"model": str(tiny_model)}}, "output": str(tmp_path / "out")}
    # The words are unknown to this tokenizer, so their lengths are not checked here.
    monkeypatch.setattr("penchant.recipes.dialogue.pipeline.check_lengths", lambda *arguments: None)
    config = validated(DialogueConfig, values, "test")
    dialogue(config, only_stage="data")
    questions = read_questions(tmp_path / "out" / "data")
    assert len(questions) == 2
    assert all(question.reference == f"Rest{separator}well 2." for question in questions)
    assert all(question.question.startswith(f"One{separator}two") for question in questions)

    reply = f"Sleep{separator}now."
    monkeypatch.setattr(evaluation, "generate_answers", lambda model, prompts, *settings: ((reply,),) * len(prompts))
    folder = tmp_path / "out" / "answers"
    folder.mkdir()
    folders = ("one", "two", "three")
    counts = evaluation.write_answers(
        config,
        [ModelVariant("m", "base", ("x",)), ModelVariant("m", "sft", folders), ModelVariant("m", "dpo", folders)],
        folder,
    )
    assert counts == {"questions": 20, "models": 7}
    assert evaluation._answers(folder / "m-dpo-0.jsonl") == [reply] * 20
