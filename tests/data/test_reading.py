from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from penchant.data.messages import context_of
from penchant.data.reading import FORMATS, read_groups
from penchant.errors import DataError

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
TURNS = {
    "prompt": [{"role": "user", "content": "p"}],
    "chosen": [{"role": "assistant", "content": "a"}],
    "rejected": [{"role": "assistant", "content": "b"}],
}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def failure(source: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_groups(source, **options)
    assert caught.value.fix, "an error says what to do"
    return caught.value


class TestNotes:
    def test_one_note_names_the_format_and_the_columns(self, tmp_path: Path) -> None:
        group_set = read_groups(lines(tmp_path / "a.jsonl", {**PAIR, "votes": 3, "id": "x"}, {**PAIR, "weight": 2}))
        assert group_set.notes == (
            "a.jsonl: 2 groups, format pairs (prompt, chosen, rejected, weight; plain text); columns not used: votes",
        )
        assert (group_set.format, group_set.source) == ("pairs", str(tmp_path / "a.jsonl"))

    def test_one_group_in_messages(self, tmp_path: Path) -> None:
        group_set = read_groups(
            lines(tmp_path / "a.jsonl", {**TURNS, "tools": "[]", "images": [], "chat_template_kwargs": {}})
        )
        assert group_set.notes[0] == (
            "a.jsonl: 1 group, format pairs (prompt, chosen, rejected, tools, chat_template_kwargs; conversational); "
            "columns not used: images"
        )

    def test_ids_default_to_the_rows_number(self, tmp_path: Path) -> None:
        group_set = read_groups(lines(tmp_path / "a.jsonl", PAIR, {**PAIR, "id": "x"}, {**PAIR, "id": None}))
        assert [group.id for group in group_set.groups] == ["0", "x", "2"]

    def test_repeated_ids_are_kept_and_noted(self, tmp_path: Path) -> None:
        group_set = read_groups(
            lines(tmp_path / "a.jsonl", {**PAIR, "id": "1"}, PAIR, {**PAIR, "id": "7"}, {**PAIR, "id": 7})
        )
        assert [group.id for group in group_set.groups] == ["1", "1", "7", "7"]
        assert group_set.notes[1] == "a.jsonl: 2 ids occur more than once (first: 1)"

    def test_files_of_a_folder_are_named(self, tmp_path: Path) -> None:
        folder = tmp_path / "both"
        folder.mkdir()
        lines(folder / "a.jsonl", PAIR)
        lines(folder / "b.jsonl", PAIR)
        group_set = read_groups(folder)
        assert group_set.notes[1] == "both: read from both/a.jsonl, both/b.jsonl"
        assert [group.id for group in group_set.groups] == ["0", "1"]


class TestDetection:
    def test_trap_the_format_is_detected_from_all_rows(self, tmp_path: Path) -> None:
        # TRL looks at the first row only.
        error = failure(
            lines(tmp_path / "a.jsonl", *[PAIR] * 9, {"chosen": TURNS["chosen"], "rejected": TURNS["rejected"]})
        )
        assert error.what == (
            "rows of several formats: pairs (9 rows, first: a.jsonl, line 1); "
            "implicit_prompt (1 row, first: a.jsonl, line 10); expected one format"
        )
        assert error.where == "a.jsonl"

    def test_trap_the_kind_is_detected_from_all_rows(self, tmp_path: Path) -> None:
        error = failure(lines(tmp_path / "a.jsonl", PAIR, TURNS, PAIR))
        assert error.what == (
            "rows of both kinds: plain text (2, first: a.jsonl, line 1); conversational (1, first: a.jsonl, line 2); "
            "expected all plain text or all messages"
        )

    def test_a_row_of_no_format_among_others(self, tmp_path: Path) -> None:
        error = failure(lines(tmp_path / "a.jsonl", PAIR, {"prompt": "p", "chosen": "a", "rejectd": "b"}))
        assert error.where == "a.jsonl, line 2"
        assert "1 row of no known format (columns: prompt, chosen, rejectd)" in error.what
        assert "pairs (lacks 'rejected' (is it 'rejectd'?))" in error.what
        assert "the other rows are pairs (1 row, first: a.jsonl, line 1)" in error.what

    def test_a_null_is_not_another_format(self, tmp_path: Path) -> None:
        error = failure(lines(tmp_path / "a.jsonl", PAIR, {**PAIR, "rejected": None}))
        assert str(error).startswith("a.jsonl, line 2: column 'rejected' is null; expected a value")

    def test_no_format_at_all(self, tmp_path: Path) -> None:
        error = failure(lines(tmp_path / "a.jsonl", {"question": "q", "better": "a", "worse": "b"}))
        assert error.what == (
            "no known preference format (columns: question, better, worse); nearest are "
            "pairs (lacks 'prompt', 'chosen', 'rejected'); penchant (lacks 'prompt', 'candidates'); "
            "unpaired (lacks 'completion' or 'messages', 'label')"
        )
        assert "data.columns={prompt: question, chosen: better, rejected: worse}" in (error.fix or "")

    def test_columns_of_the_wrong_type(self, tmp_path: Path) -> None:
        error = failure(lines(tmp_path / "a.jsonl", {"context": "p", "completions": ["a"]}))
        assert "nemo_rl (has its columns, context, completions, but not of the types it takes)" in error.what

    def test_a_named_format_is_not_detected(self, tmp_path: Path) -> None:
        file = lines(tmp_path / "a.jsonl", {**PAIR, "completion": "c"})
        assert read_groups(file).format == "pairs"
        group_set = read_groups(file, format="sft")
        assert group_set.groups[0].candidates == ("c",)
        assert group_set.notes[0].endswith("columns not used: chosen, rejected")

    def test_unknown_format(self, tmp_path: Path) -> None:
        error = failure(tmp_path / "absent.jsonl", format="pair")
        assert "there is no format 'pair'" in error.what
        assert error.fix == "data.format=pairs"

    @pytest.mark.parametrize("name", FORMATS)
    def test_a_format_that_does_not_fit_the_rows_is_a_data_error(self, tmp_path: Path, name: str) -> None:
        error = failure(lines(tmp_path / "a.jsonl", {"question": [1], "messages": {}, "conversations": 0}), format=name)
        assert error.where == "a.jsonl, line 1"


class TestColumns:
    def test_mapped(self, tmp_path: Path) -> None:
        file = lines(tmp_path / "a.jsonl", {"question": "q", "good": "a", "bad": "b", "prompt": "old"})
        columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "unused": "prompt"}
        group_set = read_groups(file, columns=columns)
        assert (group_set.groups[0].prompt, group_set.groups[0].candidates) == ("q", ("a", "b"))
        assert group_set.notes[0] == (
            "a.jsonl: 1 group, format pairs (prompt (from question), chosen (from good), rejected (from bad); "
            "plain text); columns not used: unused (from prompt)"
        )

    def test_a_column_that_only_some_rows_have(self, tmp_path: Path) -> None:
        file = lines(tmp_path / "a.jsonl", PAIR, {**PAIR, "w": 2})
        assert [group.weight for group in read_groups(file, columns={"weight": "w"}).groups] == [1, 2]

    def test_a_missing_column(self, tmp_path: Path) -> None:
        error = failure(
            lines(tmp_path / "a.jsonl", {"question": "q", "chosen": "a", "rejected": "b"}),
            columns={"prompt": "qestion"},
        )
        assert error.what == "no column 'qestion' to read as 'prompt'; the columns are question, chosen, rejected"
        assert error.fix == "data.columns={prompt: question}"


class TestTraps:
    @pytest.mark.parametrize(
        ("chosen", "rejected"),
        [
            ("abc ", "xyz"),
            ("same", "same"),
            ("Q: 1+1? The answer is 2", "Q: 1+1? The answer is 3"),
            ("Q: a", "Q: a longer"),
            ("", "x"),
        ],
    )
    def test_trap_shared_characters_do_not_make_a_prompt(self, tmp_path: Path, chosen: str, rejected: str) -> None:
        # TRL uses the characters that two texts share as the prompt.
        error = failure(lines(tmp_path / "a.jsonl", {"chosen": chosen, "rejected": rejected}))
        assert "there is no prompt" in error.what
        assert "add a column 'prompt'" in (error.fix or "")

    def test_trap_equal_conversations_keep_their_responses(self, tmp_path: Path) -> None:
        # The shared prefix of equal conversations is the whole conversation.
        whole = [*TURNS["prompt"], *TURNS["chosen"]]
        (group,) = read_groups(lines(tmp_path / "a.jsonl", {"chosen": whole, "rejected": whole})).groups
        assert group.prompt == tuple(TURNS["prompt"])
        assert group.candidates == (tuple(TURNS["chosen"]),) * 2

    def test_trap_the_shared_prompt_consists_of_whole_messages(self, tmp_path: Path) -> None:
        # Answers with a common beginning are not split.
        answers = [{"role": "assistant", "content": f"The answer is {n}"} for n in (2, 3)]
        row = {"chosen": [*TURNS["prompt"], answers[0]], "rejected": [*TURNS["prompt"], answers[1]]}
        (group,) = read_groups(lines(tmp_path / "a.jsonl", row)).groups
        assert group.candidates == ((answers[0],), (answers[1],))

    def test_trap_groups_depend_on_content_alone(self, tmp_path: Path) -> None:
        # TRL's cache key changes with settings that do not matter, as the fingerprint of `datasets` does.
        import datasets
        import pyarrow
        import pyarrow.parquet

        rows = [{**PAIR, "prompt": f"p{n}", "id": f"r{n}"} for n in range(3)]
        plain = lines(tmp_path / "a.jsonl", *rows)
        sources = [plain, lines(tmp_path / "b.json", *rows), tmp_path / "c.jsonl.gz", tmp_path / "d.csv",
                   tmp_path / "e.parquet", tmp_path / "f"]  # fmt: skip
        sources[2].write_bytes(gzip.compress(plain.read_bytes()))
        with sources[3].open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sources[4])
        datasets.Dataset.from_list(rows).save_to_disk(str(sources[5]))
        results = [read_groups(source).groups for source in sources]
        assert all(groups == results[0] for groups in results)
        assert len(results[0]) == 3

    def test_trap_texts_are_unchanged(self, tmp_path: Path) -> None:
        # OpenRLHF appends a space and an end token; nothing is stripped, appended or cut here.
        texts = [" p\t", "a \r\n\n", "\u00a0b</s>" + "x" * 100_000]
        row = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
        (group,) = read_groups(lines(tmp_path / "a.jsonl", row)).groups
        assert [group.prompt, *group.candidates] == texts

    def test_trap_ties_and_more_than_two_candidates(self, tmp_path: Path) -> None:
        # NeMo-RL refuses ties and more than two completions.
        (group,) = read_groups(
            lines(tmp_path / "a.jsonl", {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 1, 2]})
        ).groups
        assert group.pairs == ((0, 2), (1, 2))


class TestRealData:
    def test_groups_with_ties(self, shared_data: Path) -> None:
        group_set = read_groups(shared_data / "finegrained_qa" / "groups.jsonl")
        assert group_set.notes == (
            "groups.jsonl: 300 groups, format ranked (prompt, candidates, pairwise, scores; plain text)",
        )
        assert sum(len(group.pairs) for group in group_set.groups) == 1587
        assert sum(6 - len(group.pairs) for group in group_set.groups) == 213
        assert {len(group.candidates) for group in group_set.groups} == {4}

    def test_pairs_agree_with_the_groups(self, shared_data: Path) -> None:
        folder = shared_data / "finegrained_qa"
        pairs = read_groups(folder / "pairs.jsonl").groups
        groups = read_groups(folder / "groups.jsonl").groups
        from_groups = [(g.prompt, g.candidates[i], g.candidates[j]) for g in groups for i, j in g.pairs]
        assert sorted(from_groups, key=str) == sorted(((p.prompt, *p.candidates) for p in pairs), key=str)
        assert "rows of several formats: ranked (300 rows" in failure(folder).what

    @pytest.mark.parametrize(
        ("file", "count", "unused"),
        [
            ("pandalm", 497, "votes"),
            ("counsel_chat", 1271, "question_id, topic, upvotes_chosen, upvotes_rejected"),
        ],
    )
    def test_pairs(self, shared_data: Path, file: str, count: int, unused: str) -> None:
        note = "format pairs (prompt, chosen, rejected; plain text)"
        assert read_groups(shared_data / file / "pairs.jsonl").notes == (
            f"pairs.jsonl: {count} groups, {note}; columns not used: {unused}",
        )

    def test_empty_responses_are_read(self, shared_data: Path) -> None:
        groups = read_groups(shared_data / "pandalm" / "pairs_empty_side.jsonl").groups
        assert [sum(group.candidates[side] == "" for group in groups) for side in (0, 1)] == [1, 51]

    def test_dialogues_with_calls(self, shared_data: Path) -> None:
        group_set = read_groups(shared_data / "glaive_toolcall" / "glaive_toolcall_en_demo.json")
        assert group_set.notes[0].endswith("300 groups, format sft (conversations, tools; conversational)")
        assert "211 x turns from 'observation' read as role 'tool'" in "".join(group_set.notes)
        assert "211 x turns from 'function_call' read as tool calls" in "".join(group_set.notes)
        calls = [call for g in group_set.groups for turn in g.prompt for call in turn.get("tool_calls", [])]
        assert len(calls) == 211
        assert all(isinstance(call["function"]["arguments"], dict) for call in calls)
        assert sum(bool(context_of(group.prompt).tools) for group in group_set.groups) == 191
        assert all(group.pairs == () and len(group.candidates) == 1 for group in group_set.groups)

    def test_function_questions_have_no_preference_format(self, shared_data: Path) -> None:
        error = failure(shared_data / "bfcl" / "BFCL_v4_irrelevance.json")
        assert "no known preference format (columns: id, question, function)" in error.what
