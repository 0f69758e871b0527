"""Reading of rows with answers and of rows with dialogues."""

from __future__ import annotations

import json

import pytest

from penchant.errors import DataError
from penchant.recipes.dialogue.rewriting import AnswerRecord, read_answer_records


@pytest.fixture
def write_rows(tmp_path):
    def write(*rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(file)

    return write


def test_answers(write_rows):
    file = write_rows(
        {"question": " q ", "answer": "a", "votes": 2, "topic": "t"}, "", {"question": "q", "answer": "b"}
    )
    assert read_answer_records(file, rating=None, turns=3) == [
        AnswerRecord("q", "a", None, None, "t"),
        AnswerRecord("q", "b"),
    ]
    with pytest.raises(DataError, match=r"rows.jsonl, line 3: 'votes' is None; expected the answer's rating"):
        read_answer_records(file, rating="votes", turns=3)


def test_dialogues(write_rows):
    def messages(*turns):
        return [{"role": role, "content": content} for role, content in turns]

    talk = messages(("doctor", "Hello."), ("patient", "My knee."), ("doctor", "Since when?"))
    talk += messages(("patient", "May."), ("doctor", ""))
    file = write_rows({"messages": talk, "source": "s"}, {"messages": messages(("user", "Hi"), ("assistant", "Hello"))})
    assert read_answer_records(file, rating=None, turns=3) == [
        AnswerRecord("doctor: Hello.\npatient: My knee.", "Since when?", None, "s"),
        AnswerRecord("Hi", "Hello"),
    ]
    assert read_answer_records(file, rating=None, turns=1)[0].question == "My knee."


@pytest.mark.parametrize(
    ("row", "rating", "message"),
    [
        ("{", None, "not valid JSON at column 1"),
        ("[]", None, "line 1: found a list; expected an object"),
        ({"question": "q"}, None, "there is no text in 'answer'; the row holds question"),
        ({"question": " ", "answer": "a"}, None, "there is no text in 'question'"),
        ({"question": "q", "answer": "a", "votes": True}, "votes", "'votes' is True"),
        ({"question": "q", "answer": "a", "topic": 3}, None, "'topic' is 3; expected text"),
        ({"messages": [{"role": "user"}]}, None, "no messages"),
        ({"messages": [], "votes": 1}, "votes", "a dialogue has no ratings"),
        ("", None, "it is empty; expected at least one row"),
        ({"messages": []}, None, "there is no answer in it"),
    ],
)
def test_invalid_rows(write_rows, row, rating, message):
    with pytest.raises(DataError, match=r"rows\.jsonl") as error:
        read_answer_records(write_rows(row), rating=rating, turns=3)
    assert message in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read_answer_records(str(tmp_path / "none.jsonl"), rating=None, turns=1)
