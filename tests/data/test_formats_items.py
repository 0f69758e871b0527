"""Recommendation data, and preferred candidates that are named by their text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penchant.data.reading import read_groups

S_DPO_PROMPT = "Chosen before, oldest first:\nUp\nRan\nChosen next:\n"
ITEMS = {"historyList": ["Up"], "itemList": ["Jaws", "Heat"], "trueSelection": "Heat"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "candidates": ["a", "b"], "preferred": "c"}, "which none of them is, or its 0-based index"),
        ({"prompt": "p", "candidates": ["a", "a", "b"], "preferred": "a"}, "which 2 of them are"),
        ({"prompt": "p", "candidates": ["a", "b"], "preferred": 2}, "the 0-based index of one of the 2 candidates"),
        (
            {**ITEMS, "trueSelection": "Ran"},
            "column 'trueSelection' is text, \"Ran\"; expected one of the 2 titles of 'itemList', letter by letter",
        ),
        ({**ITEMS, "itemList": "[Jaws"}, "items with '::' between them"),
        ({**ITEMS, "itemList": [["Jaws"], ["Heat"]]}, "column 'itemList[0]' is a list"),
    ],
)
def test_a_preferred_text_that_is_not_a_candidate(refusal: Any, row: dict[str, Any], message: str) -> None:
    error = refusal(row)
    assert message in error.what
    assert error.where == "rows.jsonl, line 1"


def test_a_preferred_text_among_candidates_of_parts_and_calls(read_jsonl: Any, refusal: Any) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    parts = {"role": "assistant", "content": [{"type": "text", "text": "b"}]}
    row = {"prompt": [{"role": "user", "content": "p"}], "candidates": [[call], [parts]]}
    (group,) = read_jsonl({**row, "preferred": "b"}).groups
    assert group.preferred == 1
    assert "which none of them is" in refusal({**row, "preferred": "f"}).what


def test_recommendations_from_csv(tmp_path: Path) -> None:
    file = tmp_path / "sdpo.csv"
    cells = ["\"['Up', 'Ran']\"", "\"['Jaws', 'Heat']\"", "Heat"]
    file.write_text("historyList,itemList,trueSelection\n" + ",".join(cells) + "\n" + "Up::Ran,Jaws::Heat,Heat\n")
    group_set = read_groups(file)
    assert group_set.format == "s_dpo"
    facts = [(group.prompt, group.candidates, group.preferred) for group in group_set.groups]
    assert facts == [(S_DPO_PROMPT, ("Jaws", "Heat"), 1)] * 2


def read_one(tmp_path: Path, row: dict[str, Any]) -> Any:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**ITEMS, **row}))
    return read_groups(file)


def test_repeated_items_become_one_candidate_and_are_counted(tmp_path: Path) -> None:
    group_set = read_one(tmp_path, {"itemList": ["Jaws", "Heat", "Jaws", "Alien"], "trueSelection": "Alien"})
    (group,) = group_set.groups
    assert (group.candidates, group.preferred) == (("Jaws", "Heat", "Alien"), 2)
    assert any("1 x items that occur twice in 'itemList', taken once" in note for note in group_set.notes)


def test_a_history_may_be_empty(tmp_path: Path) -> None:
    for history in ("", [], "[]"):
        (group,) = read_one(tmp_path, {"historyList": history}).groups
        assert group.prompt == "Chosen before, oldest first:\nChosen next:\n"


def test_a_list_in_json_and_items_that_are_numbers(tmp_path: Path) -> None:
    # JSON escapes an emoji as a surrogate pair, which a Python literal would read as two characters.
    json_list = json.dumps(['It\u2019s "Heat"', "L\\'Avventura", "\U0001f600"])
    (group,) = read_one(tmp_path, {"itemList": json_list, "trueSelection": "\U0001f600"}).groups
    assert (group.candidates[0], group.preferred) == ('It\u2019s "Heat"', 2)
    (numbered,) = read_one(tmp_path, {"historyList": [7], "itemList": [3, 12], "trueSelection": 12}).groups
    assert (numbered.prompt.splitlines()[1], numbered.candidates, numbered.preferred) == ("7", ("3", "12"), 1)
