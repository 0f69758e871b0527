"""Rows of answers and of dialogues."""

from __future__ import annotations

import json

import pytest

from penchant.errors import DataError
from penchant.recipes.dialogue.reading import Answered, read_answered


@pytest.fixture
def written(tmp_path):
    def write(*rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(file)

    return write


def test_answers(written):
    file = written({"question": " q ", "answer": "a", "votes": 2, "topic": "t"}, "", {"question": "q", "answer": "b"})
    assert read_answered(file, rating=None, turns=3) == [Answered("q", "a", None, None, "t"), Answered("q", "b")]
    with pytest.raises(DataError, match=r"rows.jsonl, line 3: 'votes' is None; expected the answer's rating"):
        read_answered(file, rating="votes", turns=3)


def test_dialogues(written):
    def said(*turns):
        return [{"role": role, "content": content} for role, content in turns]

    talk = said(("doctor", "Hello."), ("patient", "My knee."), ("doctor", "Since when?"))
    talk += said(("patient", "May."), ("doctor", ""))
    file = written({"messages": talk, "source": "s"}, {"messages": said(("user", "Hi"), ("assistant", "Hello"))})
    assert read_answered(file, rating=None, turns=3) == [
        Answered("doctor: Hello.\npatient: My knee.", "Since when?", None, "s"),
        Answered("Hi", "Hello"),
    ]
    assert read_answered(file, rating=None, turns=1)[0].question == "My knee."


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
def test_bad_rows(written, row, rating, message):
    with pytest.raises(DataError, match=r"rows\.jsonl") as error:
        read_answered(written(row), rating=rating, turns=3)
    assert message in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read_answered(str(tmp_path / "none.jsonl"), rating=None, turns=1)
