"""Conversations that continue one another, splits that keep rows together, and columns that are kept."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from penchant.cli.main import run
from penchant.data.checks import check_groups
from penchant.data.groups import Message, PreferenceGroup, Text
from penchant.data.overlaps import first_user_turn, overlapping_prompts, prefix_digests, turns_of
from penchant.data.reading import read_groups
from penchant.data.splitting import column_values, first_user_turns, split_by_prompt
from penchant.data.writing import READ_COLUMNS, write_groups
from penchant.errors import DataError


def talk(*texts: str, system: str | None = None) -> tuple[Message, ...]:
    turns = [
        Message(role=role, content=text) for role, text in zip(["user", "assistant"] * len(texts), texts, strict=False)
    ]
    return (*([] if system is None else [Message(role="system", content=system)]), *turns)


def pair(prompt: Text, chosen: Text = " a", rejected: Text = " b", **fields: Any) -> PreferenceGroup:
    return PreferenceGroup(prompt, (chosen, rejected), preferred=0, **fields)


class TestTurns:
    def test_a_transcript_is_read_as_its_messages(self):
        text = "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHuman: A: b?\n\nAssistant:"
        assert turns_of(text) == [("user", " Hi there"), ("assistant", " Hello."), ("user", " A: b?")]
        assert turns_of("Is a Human: right?") == [("user", "Is a Human: right?")]

    @pytest.mark.parametrize(
        "prompt", [talk("Hi  There", "x", "y", system="s"), "\n\nHuman: hi there\n\nAssistant:", "HI there"]
    )
    def test_first_user_turn(self, prompt):
        assert first_user_turn(prompt) == "hi there"


class TestOverlappingPrompts:
    @pytest.mark.parametrize(
        ("prompt", "held_out", "hit"),
        [
            (talk("a"), talk("a", "b", "c"), True),
            (talk("a", "b", "c"), talk("a"), True),
            (talk("A "), talk("a", "b", "c"), True),
            (talk("a"), talk("a"), False),
            (talk("a", "x", "c"), talk("a", "b", "c"), False),
            (talk("a"), talk("a", "b", "c", system="s"), False),
            (talk("ab"), talk("a", "b", "c"), False),
            ("\n\nHuman: a\n\nAssistant:", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", True),
            ("\n\nHuman: a\n\nAssistant:", talk("a", "b", "c"), True),
            ("a", "a b", False),
        ],
    )
    def test_a_prompt_that_continues_a_held_out_prompt_is_found(self, prompt, held_out, hit):
        assert list(overlapping_prompts([prefix_digests(prompt)], [prefix_digests(held_out)])) == [0] * hit
        report = check_groups([pair(prompt)], held_out=[pair(held_out)])
        assert report.checks["conversations_in_held_out"].count == hit

    def test_prompts_that_continue_each_other_within_a_file(self):
        groups = [pair(talk("a")), pair(talk("b"), id="1"), pair(talk("a", "x", "y"), id="2")]
        hits = check_groups(groups).checks["conversations_in_each_other"]
        assert (hits.count, hits.of, hits.ids) == (2, 3, ("0", "2"))


class TestSimilarTexts:
    def test_candidates_in_a_group(self):
        report = check_groups([pair("p", "Yes.", "yes. "), pair("q", "Yes.", "No.")])
        assert (report.checks["similar_candidates"].count, report.checks["similar_candidates"].of) == (1, 2)
        assert report.checks["identical_in_a_pair"].count == 0

    def test_groups(self):
        groups = [pair("p", "A", "B"), pair("P", "a", "b "), pair("p", "A", "B")]
        checks = check_groups(groups).checks
        assert (checks["similar_groups"].count, checks["repeated_groups"].count) == (1, 1)

    def test_candidates_in_held_out(self):
        checks = check_groups([pair("p", "Yes.", "no")], held_out=[pair("q", "yes.", "maybe")]).checks
        assert checks["candidates_in_held_out"].count == 0
        assert checks["candidates_in_held_out_normalized"].count == 1


class TestSplit:
    def groups(self) -> list[PreferenceGroup]:
        """Rows of 40 prompts of 8 users."""
        return [pair(f"q{n}", id=str(n), extra={"user": n % 8, "row": n}) for n in range(40)]

    def test_rows_with_one_value_stay_together(self):
        groups = self.groups()
        train, held_out = split_by_prompt(groups, held_out=0.25, seed=0, together=[column_values(groups, "user")])
        users = [{group.extra["user"] for group in side} for side in (train, held_out)]
        assert not users[0] & users[1]
        assert [len(side_users) for side_users in users] == [6, 2]
        assert len(train) + len(held_out) == 40

    def test_the_split_does_not_depend_on_the_order_of_rows(self):
        groups = self.groups()
        sides = [
            {
                group.id
                for group in split_by_prompt(ordered, held_out=0.25, seed=3, together=[column_values(ordered, "user")])[
                    1
                ]
            }
            for ordered in (groups, groups[::-1], groups[7:] + groups[:7])
        ]
        assert sides[0] == sides[1] == sides[2]

    def test_a_prompt_shared_by_two_users_keeps_them_together(self):
        groups = [pair("a", extra={"user": 1}), pair("b", extra={"user": 1}), pair("b", extra={"user": 2}),
                  pair("c", extra={"user": 2}), pair("d", extra={"user": 3})]  # fmt: skip
        train, held_out = split_by_prompt(groups, held_out=0.5, seed=0, together=[column_values(groups, "user")])
        assert sorted((len(train), len(held_out))) == [1, 4]

    def test_without_further_keys_the_split_is_by_prompt(self):
        groups = self.groups()
        assert split_by_prompt(groups, held_out=0.25, seed=1) == split_by_prompt(
            groups, held_out=0.25, seed=1, together=[[group.id for group in groups]]
        )

    def test_first_turns(self):
        groups = [pair(talk(f"q{n % 4}", *["x", f"{n}"] * (n // 4))) for n in range(12)]
        train, held_out = split_by_prompt(groups, held_out=0.25, seed=0, together=[first_user_turns(groups)])
        report = check_groups(train, held_out=held_out)
        assert report.checks["conversations_in_held_out"].count == 0
        assert len(held_out) == 3

    def test_a_missing_column(self):
        with pytest.raises(DataError, match="no value in 'user'; there are id, who"):
            column_values([pair("p", extra={"who": 1})], "user")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"q{n}", "chosen": "a", "rejected": "b", "user": n % 4, "meta": {"n": [n]}, "rank": n, "scores": [n]}
        for n in range(16)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class TestColumns:
    def rows_of(self, path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    def test_convert_keeps_all_columns(self, file, tmp_path, capsys):
        assert run(["data", "convert", str(file), str(tmp_path / "new.jsonl")]) == 0
        assert "column rank is written as original_rank" in capsys.readouterr().out
        rows = self.rows_of(tmp_path / "new.jsonl")
        assert [(row["user"], row["meta"], row["original_rank"]) for row in rows] == [
            (n % 4, {"n": [n]}, n) for n in range(16)
        ]
        assert read_groups(tmp_path / "new.jsonl").groups == read_groups(file).groups

    def test_split_by_a_column(self, file, tmp_path):
        outputs = [tmp_path / "train.jsonl", tmp_path / "out.jsonl"]
        line = ["data", "split", file, "--by", "user", "--held-out", 0.25, "--train-output", outputs[0]]
        assert run([str(argument) for argument in [*line, "--held-out-output", outputs[1]]]) == 0
        sides = [{row["user"] for row in self.rows_of(output)} for output in outputs]
        assert [len(side) for side in sides] == [3, 1]
        assert not sides[0] & sides[1]

    def test_split_by_first_turn(self, tmp_path):
        rows = [
            {"prompt": list(talk(f"q{n % 4}", *["x", f"{n}"] * (n // 4))), "chosen": "a", "rejected": "b"}
            for n in range(12)
        ]
        file, outputs = tmp_path / "talks.jsonl", [tmp_path / "train.jsonl", tmp_path / "out.jsonl"]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        line = ["data", "split", file, "--by-first-turn", "--held-out", 0.25, "--train-output", outputs[0]]
        assert run([str(argument) for argument in [*line, "--held-out-output", outputs[1]]]) == 0
        assert [len(self.rows_of(output)) for output in outputs] == [9, 3]

    @pytest.mark.parametrize("column", sorted(READ_COLUMNS - {"id", "prompt", "candidates"}))
    def test_unread_columns_are_renamed_where_a_reader_would_read_them(self, column, tmp_path):
        group = PreferenceGroup("p", ("a", "b"), extra={column: [{"completion": "x", "rank": 1}]})
        write_groups([group], tmp_path / "a.jsonl")
        [group_back] = read_groups(tmp_path / "a.jsonl").groups
        assert group_back == group
        assert group_back.extra == {f"original_{column}": [{"completion": "x", "rank": 1}]}

    def test_values_of_tables(self, tmp_path):
        day = datetime.datetime(2026, 11, 30, 1, 2)
        write_groups([pair("p", extra={"day": day, "picture": b"\x00", "gap": float("nan")})], tmp_path / "a.jsonl")
        [row] = self.rows_of(tmp_path / "a.jsonl")
        assert (row["day"], row["picture"], row["gap"]) == ("2026-11-30 01:02:00", "AA==", None)

    def test_mapped_columns_go_back_to_their_names(self, tmp_path):
        file = tmp_path / "a.jsonl"
        file.write_text(json.dumps({"prompt": "whole", "q": "p", "chosen": "a", "rejected": "b"}) + "\n")
        [group] = read_groups(file, columns={"prompt": "q", "unused": "prompt"}).groups
        assert group.extra == {"prompt": "whole"}


def calling(city: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": city}}}]}


class TestUnlikeTurns:
    @pytest.mark.parametrize(
        ("prompt", "other_prompt"),
        [
            (talk("a"), ({"role": "system", "content": "a"}, *talk("b"))),
            (talk("aassistant:b"), talk("a", "b", "c")),
            ((*talk("a"), calling("Rome"), *talk("b")), (*talk("a"), calling("Oslo"), *talk("b", "c", "d"))),
        ],
        ids=["roles", "run together", "calls"],
    )
    def test_unlike_turns_do_not_overlap(self, prompt, other_prompt):
        assert list(overlapping_prompts([prefix_digests(prompt)], [prefix_digests(other_prompt)])) == []
        assert list(overlapping_prompts([prefix_digests(other_prompt)], [prefix_digests(prompt)])) == []

    def test_a_continued_conversation_with_calls_overlaps(self):
        shorter = (*talk("a"), calling("Rome"), *talk("b"))
        longer = (*shorter, *talk("c", "d")[1:], *talk("e"))
        assert list(overlapping_prompts([prefix_digests(shorter)], [prefix_digests(longer)])) == [0]

    def test_identical_candidates_are_not_similar_too(self):
        checks = check_groups([pair("p", "Yes.", "Yes.")]).checks
        assert (checks["identical_in_a_pair"].count, checks["similar_candidates"].count) == (1, 0)


class TestSplitFlags:
    def sides(self, tmp_path: Path, rows: list[dict[str, Any]], *flags: str) -> list[list[dict[str, Any]]]:
        """The rows of both sides."""
        file, outputs = tmp_path / "rows.jsonl", [tmp_path / "train.jsonl", tmp_path / "out.jsonl"]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        line = ["data", "split", file, *flags, "--held-out", "0.25", "--train-output", outputs[0]]
        assert run([str(word) for word in [*line, "--held-out-output", outputs[1]]]) == 0
        return [[json.loads(line) for line in output.read_text().splitlines()] for output in outputs]

    def test_by_two_columns(self, tmp_path):
        rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b", "user": n // 4, "page": n // 8} for n in range(64)]
        for column, flags in (("user", ["--by", "user"]), ("page", ["--by", "user", "--by", "page"])):
            folder = tmp_path / column
            folder.mkdir()
            train, held_out = ({row[column] for row in side} for side in self.sides(folder, rows, *flags))
            assert not train & held_out

    def test_by_first_turn(self, tmp_path):
        rows = [{"prompt": list(talk(f"q{n % 16}", "x", f"{n}")), "chosen": "a", "rejected": "b"} for n in range(64)]
        first_turns_of_sides = (
            {row["prompt"][0]["content"] for row in side} for side in self.sides(tmp_path, rows, "--by-first-turn")
        )
        train, held_out = first_turns_of_sides
        assert (len(train), len(held_out)) == (12, 4)

    def test_a_number_and_its_text_are_different_values(self):
        groups = [pair("p", extra={"user": 1}), pair("q", extra={"user": "1"})]
        assert len(set(column_values(groups, "user"))) == 2
