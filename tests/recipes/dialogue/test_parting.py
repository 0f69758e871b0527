"""No topic is parted between training and the test, within a source or across them."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from penchant.config_errors import validated
from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.reading import read_groups
from penchant.data.splitting import split_by_prompt
from penchant.errors import DataError
from penchant.recipes.dialogue.config import DialogueConfig
from penchant.recipes.dialogue.parting import parts_of, topics_of
from penchant.recipes.dialogue.pipeline import dialogue

FILES = {"a": "a.jsonl", "b": "b.jsonl"}


def test_topics_that_share_a_question_are_one():
    asked = [("q1", "heart"), ("q2", "blood"), ("q1", "blood"), ("q3", None), ("q4", "skin"), ("q3", "skin")]
    assert topics_of(asked) == {"q1": "blood", "q2": "blood", "q3": "q3", "q4": "q3"}


def test_topics_of_one_source_are_parted_as_by_themselves():
    own = {f"t{n}" for n in range(20)}
    found = parts_of({"a": own, "b": {f"u{n}" for n in range(7)}}, FILES, 0.2, 3)
    assert Counter(found[topic] for topic in own) == {"train": 12, "validation": 4, "test": 4}
    _, test = split_by_prompt([PreferenceGroup(topic, ("",)) for topic in own], held_out=0.2, seed=3)
    assert {group.prompt for group in test} == {topic for topic in own if found[topic] == "test"}


def test_a_few_shared_topics_are_trained_on():
    topics = {"a": {"both", *(f"t{n}" for n in range(10))}, "b": {"both", *(f"u{n}" for n in range(10))}}
    found = parts_of(topics, FILES, 0.2, 0)
    assert found["both"] == "train"
    assert Counter(found.values()) == {"train": 13, "validation": 4, "test": 4}


def test_a_source_without_a_part():
    topics = {"a": {f"t{n}" for n in range(10)}, "b": {"t1", "u"}}
    with pytest.raises(DataError, match=r"b\.jsonl: 2 topics leave nothing for validation and test"):
        parts_of(topics, FILES, 0.2, 0)


def test_a_topic_in_two_sources(tmp_path, tiny_model, monkeypatch):
    """Both have the same ten topics and other questions."""
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
    # Words are unknown to this tokenizer: what is measured here is not how long they are.
    monkeypatch.setattr("penchant.recipes.dialogue.pipeline.check_lengths", lambda *arguments: None)
    found = dialogue(validated(DialogueConfig, values, "test"), only="data")["data"]
    assert found["pairs"] == {part: {"a": n, "b": n} for part, n in (("train", 6), ("validation", 2), ("test", 2))}
    numbers = []
    for part in ("train", "validation", "test"):
        groups = read_groups(tmp_path / "out" / "data" / f"preferences_{part}.jsonl").groups
        asked = [as_text(group.prompt).removeprefix("Question: ").split("?")[0] for group in groups]
        numbers.append({name: {each[5:] for each in asked if each[0] == name} for name in FILES})
    assert all(each["a"] == each["b"] for each in numbers)
    assert sum(len(each["a"]) for each in numbers) == len(set.union(*(each["a"] for each in numbers))) == 10
