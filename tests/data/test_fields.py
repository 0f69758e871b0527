"""Errors of single values, which name row and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penchant.data.fields import describe_value
from penchant.data.reading import read_groups
from penchant.errors import DataError

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
TWO: dict[str, Any] = {"prompt": "p", "candidates": ["a", "b"]}
LISTED: dict[str, Any] = {"prompt": "p", "completions": ["a", "b"]}
ONE: dict[str, Any] = {"prompt": "p", "completion": "a"}


def error_text(folder: Path, row: dict[str, Any], format: str | None = None) -> str:
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        read_groups(file, format=format)
    assert caught.value.where == "rows.jsonl, line 1"
    assert caught.value.fix, "an error says what to do"
    return caught.value.what


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PAIR | {"prompt": 5}, "column 'prompt' is a number, 5; expected text"),
        (PAIR | {"chosen": True}, "column 'chosen' is true/false, true; expected text"),
        (PAIR | {"chosen": "a\ud800"}, "lone surrogate U+D800 at character 1"),
        (TWO | {"candidates": "a"}, "column 'candidates' is text, \"a\"; expected a list"),
        (TWO | {"candidates": []}, "no candidates; expected at least one"),
    ],
)
def test_texts(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    assert expected in error_text(tmp_path, row)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1], "expected one item for each of the 2 candidates, found 1"),
        ([0, float("nan")], "column 'scores[1]' is a number, NaN; expected a finite number"),
        ([10**400, 0], "expected a finite number"),
        (["1", "2"], "column 'scores[0]' is text, \"1\"; expected a number"),
        ([True, False], "column 'scores[0]' is true/false, true; expected a number"),
        ([1, None], "column 'scores[1]' is null; expected a number"),
        (5, "column 'scores' is a number, 5; expected a list"),
    ],
)
def test_scores(tmp_path: Path, scores: Any, expected: str) -> None:
    assert expected in error_text(tmp_path, TWO | {"scores": scores})
    assert expected in error_text(tmp_path, LISTED | {"scores": scores})


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (TWO | {"preferred": 2}, "one of the 2 candidates, 0 to 1"),
        (TWO | {"preferred": -1}, "one of the 2 candidates, 0 to 1"),
        (TWO | {"preferred": "c"}, "column 'preferred' is text, \"c\"; expected"),
        (TWO | {"comparisons": [[0, 0]]}, "two different indices, the better candidate's first"),
        (TWO | {"comparisons": [[0, 2]]}, "column 'comparisons[0][1]' is a number, 2"),
        (TWO | {"labels": [True, "no"]}, "column 'labels[1]' is text, \"no\"; expected true or false"),
        (TWO | {"pairwise": [{"i": 0, "j": 1, "winner": 3}]}, "winner 0 (i), 1 (j) or 2 (a tie)"),
        (TWO | {"pairwise": [{"i": 1, "j": 1, "winner": 0}]}, "two different indices i and j"),
        (TWO | {"pairwise": [{"i": 0, "j": 1}]}, "expected an object with winner"),
        (LISTED | {"ranks": [1, 1.5]}, "column 'ranks[1]' is a number, 1.5; expected a whole number"),
        # A list that contains 0 may be the order of the candidates, not their ranks.
        (LISTED | {"ranking": [1, 0]}, "counted from 1, the best"),
        (PAIR | {"rejected": []}, "expected at least one rejected response"),
        (ONE | {"label": "good"}, "column 'label' is text, \"good\"; expected true or false"),
        (ONE | {"label": 2}, "column 'label' is a number, 2; expected true or false"),
        ({"instruction": "p", "output": ["a", "b", "c"]}, "for each of the 2 candidates, found 3"),
        (
            {"instruction": "p", "completions": [{"response": "a", "score": 1}, {"response": "b"}]},
            "expected one of overall_score, fine-grained_score, score in each completion",
        ),
    ],
)
def test_preferences(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    assert expected in error_text(tmp_path, row)


@pytest.mark.parametrize(
    ("fact", "expected"),
    [
        ({"weight": 0}, "column 'weight' is a number, 0; expected a number above 0"),
        ({"weight": float("inf")}, "expected a finite number"),
        ({"id": 1.5}, "column 'id' is a number, 1.5; expected a whole number"),
        ({"id": ["x"]}, "column 'id' is a list, [\"x\"]"),
        ({"source": 3}, "column 'source' is a number, 3; expected text"),
    ],
)
def test_id_weight_and_source(tmp_path: Path, fact: dict[str, Any], expected: str) -> None:
    assert expected in error_text(tmp_path, PAIR | fact)


def test_missing_column(tmp_path: Path) -> None:
    assert error_text(tmp_path, ONE, "pairs") == "no column 'chosen'; the row has prompt, completion"
    assert error_text(tmp_path, TWO, "ranked").startswith("no column 'pairwise' or 'scores' or 'ranks'")


def test_long_values_are_shortened_in_errors() -> None:
    assert describe_value(None) == "null"
    assert describe_value({"a": 1}) == 'an object, {"a": 1}'
    assert describe_value(["x" * 100]) == 'a list, ["' + "x" * 55 + "..."
    assert describe_value(b"x") == "bytes, \"b'x'\""
