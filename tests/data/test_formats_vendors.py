from __future__ import annotations

from typing import Any

import pytest

from penchant.data.groups import PreferenceGroup


def group(prompt: Any, *candidates: Any, **facts: Any) -> PreferenceGroup:
    texts = [text if isinstance(text, str) else tuple(text) for text in (prompt, *candidates)]
    return PreferenceGroup(texts[0], tuple(texts[1:]), **facts)


class TestLabelStudio:
    DATA = {"prompt": "p", "answer1": "a", "answer2": "b"}  # noqa: RUF012
    ITEMS = {"prompt": "p", "items": [{"id": "x", "body": "a"}, {"id": 7, "html": "b"}, {"id": "z", "title": "c"}]}  # noqa: RUF012

    @staticmethod
    def judged(**value: Any) -> dict[str, Any]:
        return {"id": 1, "was_cancelled": False, "result": [{"type": "pairwise", "value": value}]}

    def test_pairwise(self, read_jsonl: Any) -> None:
        group_set = read_jsonl(
            {"id": 5, "data": self.DATA, "annotations": [self.judged(selected="left")], "project": 1},
            {"id": 6, "data": self.DATA, "annotations": [self.judged(selected="right")], "project": 1},
        )
        assert group_set.format == "label_studio"
        assert group_set.groups == (
            group("p", "a", "b", preferred=0, id="5"),
            group("p", "a", "b", preferred=1, id="6"),
        )
        assert "columns not used: project" in group_set.notes[0]

    def test_each_annotation_gives_a_group(self, read_jsonl: Any) -> None:
        group_set = read_jsonl(
            {"id": 5, "data": self.DATA, "annotations": [self.judged(selected=side) for side in ("left", "right")]}
        )
        assert [(judged.id, judged.preferred) for judged in group_set.groups] == [("5-1", 0), ("5-2", 1)]

    def test_tasks_without_an_annotation_are_counted(self, read_jsonl: Any) -> None:
        cancelled = {**self.judged(selected="left"), "was_cancelled": True}
        group_set = read_jsonl(
            {"id": 1, "data": self.DATA, "annotations": [self.judged(selected="left")]},
            {"id": 2, "data": self.DATA, "annotations": []},
            {"id": 3, "data": self.DATA, "annotations": [cancelled, {"result": []}]},
        )
        assert [judged.id for judged in group_set.groups] == ["1"]
        assert group_set.notes[1:] == (
            "rows.jsonl: 2 x left out: a task without a usable annotation (first: rows.jsonl, line 2)",
            "rows.jsonl: 1 x annotation not used: cancelled (first: rows.jsonl, line 3)",
            "rows.jsonl: 1 x annotation not used: nothing chosen (first: rows.jsonl, line 3)",
        )

    @pytest.mark.parametrize(
        ("ranker", "facts"),
        [
            ({"rank": ["z", "x", "7"]}, {"ranks": (2, 3, 1)}),
            ({"_": ["7", "x", "z"]}, {"ranks": (2, 1, 3)}),
            ({"rank": ["z", "x"], "_": ["7"]}, {"comparisons": ((2, 0),)}),
        ],
    )
    def test_ranker(self, read_jsonl: Any, ranker: dict[str, Any], facts: dict[str, Any]) -> None:
        group_set = read_jsonl({"data": self.ITEMS, "annotations": [self.judged(ranker=ranker)]})
        assert group_set.groups == (group("p", "a", "b", "c", **facts),)

    @pytest.mark.parametrize(
        ("ranker", "message"),
        [
            ({"good": ["x"], "bad": ["z"]}, "expected an object with one bucket of items"),
            ({"rank": ["x", "x"]}, "expected each of the items' ids once: x, 7, z"),
            ({"rank": ["x", "w"]}, "expected each of the items' ids once: x, 7, z"),
            ("x", "expected an object with one bucket of items"),
        ],
    )
    def test_ranker_refused(self, refusal: Any, ranker: Any, message: str) -> None:
        error_text = str(refusal({"data": self.ITEMS, "annotations": [self.judged(ranker=ranker)]}))
        assert message in error_text
        assert "annotations[0].result[0].value.ranker" in error_text

    def test_neither_left_nor_right(self, refusal: Any) -> None:
        row = {"data": self.DATA, "annotations": [self.judged(selected="up")]}
        assert "expected 'left' or 'right'" in str(refusal(row))
