"""No topic is both in training and in the test, within a source or across sources."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from penchant.config.section import validated
from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.reading import read_groups
from penchant.data.splitting import split_by_prompt
from penchant.errors import DataError
from penchant.recipes.dialogue.config import DialogueConfig
from penchant.recipes.dialogue.data import assign_parts, merge_topics
from penchant.recipes.dialogue.pipeline import dialogue

FILES = {"a": "a.jsonl", "b": "b.jsonl"}


def test_topics_that_share_a_question_are_merged():
    questions = [("q1", "heart"), ("q2", "blood"), ("q1", "blood"), ("q3", None), ("q4", "skin"), ("q3", "skin")]
    assert merge_topics(questions) == {"q1": "blood", "q2": "blood", "q3": "q3", "q4": "q3"}


def test_topics_of_one_source_are_split_on_their_own():
    topics = {f"t{n}" for n in range(20)}
    part_of = assign_parts({"a": topics, "b": {f"u{n}" for n in range(7)}}, FILES, 0.2, 3)
    assert Counter(part_of[topic] for topic in topics) == {"train": 12, "validation": 4, "test": 4}
    _, test = split_by_prompt([PreferenceGroup(topic, ("",)) for topic in topics], held_out=0.2, seed=3)
    assert {group.prompt for group in test} == {topic for topic in topics if part_of[topic] == "test"}


def test_few_shared_topics_are_in_training():
    topics = {"a": {"both", *(f"t{n}" for n in range(10))}, "b": {"both", *(f"u{n}" for n in range(10))}}
    part_of = assign_parts(topics, FILES, 0.2, 0)
    assert part_of["both"] == "train"
    assert Counter(part_of.values()) == {"train": 13, "validation": 4, "test": 4}


def test_source_without_test_topics_is_an_error():
    topics = {"a": {f"t{n}" for n in range(10)}, "b": {"t1", "u"}}
    with pytest.raises(DataError, match=r"b\.jsonl: 2 topics leave nothing for validation and test"):
        assign_parts(topics, FILES, 0.2, 0)


def test_topics_that_two_sources_share(tmp_path, tiny_model, monkeypatch):
    """Both sources have the same ten topics and different questions."""
    for name in FILES:
        rows = [
            {
                "question": f"{name} on {n}?",
                "answer": f"Rest {n} days, says {name}. {votes}",
                "topic": f"t{n}",
                "r": votes,
            }
            for n in range(10)
            for votes in (0, 2)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {name: {"file": str(tmp_path / file), "pairs": "ratings", "rating": "r"} for name, file in FILES.items()}
    values = {
        "sources": sources,
        "models": {"m": {"model": str(tiny_model)}},
        "output": str(tmp_path / "out"),
        "seed": 1,
    }
    # The words are unknown to this tokenizer, so their lengths are not checked here.
    monkeypatch.setattr("penchant.recipes.dialogue.pipeline.check_lengths", lambda *arguments: None)
    data_result = dialogue(validated(DialogueConfig, values, "test"), only_stage="data")["data"]
    assert data_result["pairs"] == {
        part: {"a": n, "b": n} for part, n in (("train", 6), ("validation", 2), ("test", 2))
    }
    numbers = []
    for part in ("train", "validation", "test"):
        groups = read_groups(tmp_path / "out" / "data" / f"preferences_{part}.jsonl").groups
        questions = [as_text(group.prompt).removeprefix("Question: ").split("?")[0] for group in groups]
        numbers.append({name: {question[5:] for question in questions if question[0] == name} for name in FILES})
    assert all(part_numbers["a"] == part_numbers["b"] for part_numbers in numbers)
    assert sum(len(part_numbers["a"]) for part_numbers in numbers) == 10
    assert len(set.union(*(part_numbers["a"] for part_numbers in numbers))) == 10
