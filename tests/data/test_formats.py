from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from penchant.data.groups import PreferenceGroup
from penchant.data.reading import FORMATS


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "be brief"}
S_DPO_PROMPT = "Chosen before, oldest first:\nUp\nRan\nChosen next:\n"
TREE = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"


def group(prompt: Any, *candidates: Any, **facts: Any) -> PreferenceGroup:
    texts = [text if isinstance(text, str) else tuple(text) for text in (prompt, *candidates)]
    return PreferenceGroup(texts[0], tuple(texts[1:]), **facts)


PREFERRED: dict[str, Any] = {"preferred": 0}
UNDER = {"instruction": "add", "input": "1 2", "output": "3"}
CASES: list[tuple[str, str, dict[str, Any], PreferenceGroup]] = [
    ("prompts", "prompts", {"prompt": "p"}, group("p", "")),
    ("prompts of messages", "prompts", {"prompt": [user("p")]}, group([user("p")], "")),
    ("pairs of text", "pairs", {"prompt": "p ", "chosen": " a\n", "rejected": ""},
     group("p ", " a\n", "", **PREFERRED)),
    (
        "pairs of messages", "pairs",
        {"prompt": [SYSTEM, user("p")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        group([SYSTEM, user("p")], [assistant("a")], [assistant("b")], **PREFERRED),
    ),
    (
        "text prompt, assistant messages", "pairs",
        {"prompt": "p", "chosen": [assistant("a")], "rejected": [assistant("b")]},
        group([user("p")], [assistant("a")], [assistant("b")], **PREFERRED),
    ),
    (
        "messages prompt, text responses", "pairs", {"prompt": [user("p")], "chosen": "a", "rejected": "b"},
        group([user("p")], [assistant("a")], [assistant("b")], **PREFERRED),
    ),
    (
        "text prompt, whole conversations", "pairs",
        {"prompt": "p", "chosen": [SYSTEM, user("p"), assistant("a")], "rejected": [SYSTEM, user("p"), assistant("b")]},
        group([SYSTEM, user("p")], [assistant("a")], [assistant("b")], **PREFERRED),
    ),
    (
        "messages prompt, whole conversations", "pairs",
        {"prompt": [user("p")], "chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("b")]},
        group([user("p")], [assistant("a")], [assistant("b")], **PREFERRED),
    ),
    (
        "implicit prompt", "implicit_prompt",
        {"chosen": [user("p"), assistant("x"), user("q"), assistant("a")],
         "rejected": [user("p"), assistant("x"), user("q"), assistant("b")]},
        group([user("p"), assistant("x"), user("q")], [assistant("a")], [assistant("b")], **PREFERRED),
    ),
    (
        "one conversation goes on", "implicit_prompt",
        {"chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("a"), user("q"), assistant("b")]},
        group([user("p")], [assistant("a")], [assistant("a"), user("q"), assistant("b")], **PREFERRED),
    ),
    ("transcripts", "hh", {"chosen": TREE + " a", "rejected": TREE + " b"}, group(TREE, " a", " b", **PREFERRED)),
    (
        "pairwise with scores", "ranked",
        {"prompt": "p", "candidates": ["a", "b", "c"], "scores": [1, 2, 0],
         "pairwise": [{"i": 0, "j": 1, "winner": 1}, {"i": 0, "j": 2, "winner": 0}, {"i": 1, "j": 2, "winner": 2}]},
        group("p", "a", "b", "c", comparisons=((1, 0), (0, 2)), scores=(1.0, 2.0, 0.0)),
    ),
    ("all tied", "ranked", {"prompt": "p", "candidates": ["a", "b"], "pairwise": [{"i": 0, "j": 1, "winner": 2}]},
     group("p", "a", "b", comparisons=())),
    ("ranking", "ranked", {"prompt": "p", "completions": ["a", "b", "c"], "ranking": [2, 1, 2]},
     group("p", "a", "b", "c", ranks=(2, 1, 2))),
    ("rank as a table's floats", "ranked", {"prompt": "p", "completions": ["a", "b"], "rank": [2.0, 1.0]},
     group("p", "a", "b", ranks=(2, 1))),
    ("best", "ranked", {"prompt": "p", "responses": ["a", "b"], "best": 1}, group("p", "a", "b", preferred=1)),
    ("best by its text", "ranked", {"prompt": "p", "responses": ["a", "b", "1"], "best": "1"},
     group("p", "a", "b", "1", preferred=2)),
    ("best by its message", "ranked",
     {"prompt": [user("p")], "responses": [[assistant("a")], [assistant("b")]], "best": "b"},
     group([user("p")], [assistant("a")], [assistant("b")], preferred=1)),
    ("preferred by its text", "penchant", {"prompt": "p", "candidates": ["a", "b"], "preferred": "b"},
     group("p", "a", "b", preferred=1)),
    ("recommendation", "s_dpo",
     {"historyList": ["Up", "Ran"], "itemList": ["Jaws", "Heat", "Jaws", "12"], "trueSelection": "Heat"},
     group(S_DPO_PROMPT, "Jaws", "Heat", "12", preferred=1)),
    ("recommendation with lists in texts", "s_dpo",
     {"historyList": "Up::Ran", "itemList": '["Jaws", "Heat", 12]', "trueSelection": 12},
     group(S_DPO_PROMPT, "Jaws", "Heat", "12", preferred=2)),
    ("recommendation with lists as Python prints them", "s_dpo",
     {"historyList": "['Up', 'Ran']", "itemList": "['Jaws', \"It's a trap\"]", "trueSelection": "It's a trap"},
     group(S_DPO_PROMPT, "Jaws", "It's a trap", preferred=1)),
    ("scored messages", "ranked", {"prompt": "p", "responses": [assistant("a"), [assistant("b")]], "scores": [0.5, 1]},
     group([user("p")], [assistant("a")], [assistant("b")], scores=(0.5, 1.0))),
    ("list of rejected", "several_rejected", {"prompt": "p", "chosen": "a", "rejected": ["b", "c"]},
     group("p", "a", "b", "c", **PREFERRED)),
    ("rejected columns", "several_rejected",
     {"prompt": "p", "chosen": "a", "rejected": "b", "rejected_10": "d", "rejected_2": "c", "rejected_3": None},
     group("p", "a", "b", "c", "d", **PREFERRED)),
    ("numbered from one", "several_rejected", {"prompt": "p", "chosen": "a", "rejected1": "b", "rejected2": "c"},
     group("p", "a", "b", "c", **PREFERRED)),
    ("list of rejected messages", "several_rejected",
     {"prompt": [user("p")], "chosen": [assistant("a")], "rejected": [[assistant("b")], [assistant("c")]]},
     group([user("p")], [assistant("a")], [assistant("b")], [assistant("c")], **PREFERRED)),
    ("yes/no", "unpaired", {"prompt": "p", "completion": "a", "label": False}, group("p", "a", labels=(False,))),
    ("yes/no without prompt", "unpaired", {"completion": "a", "label": 1}, group("", "a", labels=(True,))),
    ("yes/no of a conversation", "unpaired", {"completion": [user("p"), assistant("a")], "label": True},
     group([user("p")], [assistant("a")], labels=(True,))),
    ("yes/no of messages", "unpaired", {"messages": [user("p"), assistant("a")], "label": True},
     group([user("p")], [assistant("a")], labels=(True,))),
    ("overall scores", "ultrafeedback",
     {"instruction": "p", "source": "s", "completions": [
         {"response": "a", "overall_score": 7.5, "fine-grained_score": 1}, {"response": "b", "overall_score": 9}]},
     group("p", "a", "b", scores=(7.5, 9.0), source="s")),
    ("fine-grained scores", "ultrafeedback",
     {"prompt": "p", "completions": [
         {"response": "a", "overall_score": None, "fine-grained_score": 4.25},
         {"response": "b", "fine-grained_score": 4}]},
     group("p", "a", "b", scores=(4.25, 4.0))),
    ("Alpaca pair", "llama_factory",
     {"instruction": "add", "input": "1 2", "system": "be brief", "history": [["hi", "hello"]],
      "chosen": "3", "rejected": "4"},
     group([SYSTEM, user("hi"), assistant("hello"), user("add\n1 2")],
           [assistant("3")], [assistant("4")], **PREFERRED)),
    ("Alpaca output of two", "llama_factory", {"instruction": "add", "input": "", "output": ["3", "4"]},
     group([user("add")], [assistant("3")], [assistant("4")], **PREFERRED)),
    ("ShareGPT pair", "llama_factory",
     {"conversations": [{"from": "human", "value": "p"}], "system": "be brief",
      "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
     group([SYSTEM, user("p")], [assistant("a")], [assistant("b")], **PREFERRED)),
    ("rejected response", "ms_swift", {"messages": [user("p"), assistant("a")], "rejected_response": "b"},
     group([user("p")], [assistant("a")], [assistant("b")], **PREFERRED)),
    ("rejected responses", "ms_swift", {"messages": [user("p"), assistant("a")], "rejected_response": ["b", "c"]},
     group([user("p")], [assistant("a")], [assistant("b")], [assistant("c")], **PREFERRED)),
    ("rejected messages", "ms_swift",
     {"messages": [SYSTEM, user("p"), assistant("a")], "rejected_messages": [SYSTEM, user("p"), assistant("b")]},
     group([SYSTEM, user("p")], [assistant("a")], [assistant("b")], **PREFERRED)),
    ("ranked completions", "nemo_rl",
     {"context": [user("p")],
      "completions": [{"rank": 1, "completion": [assistant("b")]}, {"rank": 0, "completion": [assistant("a")]}]},
     group([user("p")], [assistant("b")], [assistant("a")], ranks=(2, 1))),
    ("prompt and completion", "sft", {"prompt": "p", "completion": "a"}, group("p", "a")),
    ("messages", "sft", {"messages": [SYSTEM, user("p"), assistant("a")]},
     group([SYSTEM, user("p")], [assistant("a")])),
    ("ShareGPT", "sft",
     {"conversations": [{"from": "human", "value": "p"}, {"from": "function_call", "value": "f()"},
                        {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"}]},
     group([user("p"), assistant("f()"), {"role": "tool", "content": "1"}], [assistant("a")])),
    ("Alpaca", "sft", UNDER, group([user("add\n1 2")], [assistant("3")])),
    ("text", "text", {"text": "once"}, group("", "once")),
    ("our own", "penchant",
     {"prompt": "p", "candidates": ["a", "b"], "comparisons": [[1, 0]], "scores": [1, 2], "ranks": [2, 1],
      "preferred": 1, "labels": [False, True]},
     group("p", "a", "b", comparisons=((1, 0),), scores=(1.0, 2.0), ranks=(2, 1), preferred=1, labels=(False, True))),
    ("candidates alone", "penchant", {"prompt": "p", "candidates": ["a", "b"]}, group("p", "a", "b")),
]  # fmt: skip


@pytest.mark.parametrize(("format", "row", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
class TestEveryFormat:
    def test_detected_and_read(
        self, read_jsonl: Any, format: str, row: dict[str, Any], expected: PreferenceGroup
    ) -> None:
        group_set = read_jsonl(row)
        assert group_set.format == format
        assert group_set.groups == (expected,)
        assert read_jsonl(row, format=format).groups == (expected,)

    def test_id_weight_and_source(
        self, read_jsonl: Any, format: str, row: dict[str, Any], expected: PreferenceGroup
    ) -> None:
        (group,) = read_jsonl({**row, "id": 12, "weight": 0.5, "source": "web"}).groups
        assert (group.id, group.weight, group.source) == ("12", 0.5, "web")
        assert (group.prompt, group.candidates, group.pairs) == (expected.prompt, expected.candidates, expected.pairs)

    def test_null_columns_change_nothing(
        self, read_jsonl: Any, format: str, row: dict[str, Any], expected: PreferenceGroup
    ) -> None:
        # Null responses are an error, not prompts without responses.
        responses = [] if format == "prompts" else ["chosen", "label", "text", "rejected_9"]
        nulls = dict.fromkeys(["id", "weight", "source", "tools", "ranks", *responses])
        group_set = read_jsonl(nulls | row)
        assert group_set.format == format
        assert group_set.groups == (expected,)

    def test_each_null_is_named(
        self, refusal: Any, format: str, row: dict[str, Any], expected: PreferenceGroup
    ) -> None:
        present_names = [[name for name in need.split("|") if name in row] for need in FORMATS[format].needs]
        # A null column is not needed where the row has an alternative.
        needed_names = [names[0] for names in present_names if len(names) == 1 and "rejected_2" not in row]
        assert needed_names or "rejected_2" in row
        for name in needed_names:
            message = str(refusal({**row, name: None}, format=format))
            assert name in message
            assert "rows.jsonl, line 1" in message


def test_the_cases_cover_every_format() -> None:
    assert {case[1] for case in CASES} | {"label_studio"} == set(FORMATS)


def test_every_sample_in_the_documentation_is_read_as_its_format(read_jsonl: Any) -> None:
    table = (Path(__file__).parents[2] / "docs" / "data-formats.md").read_text(encoding="utf-8")
    samples = re.findall(r"^\| `(\w+)` \|.*\| `(\{.*\})` \|$", table, re.MULTILINE)
    assert {name for name, _ in samples} == set(FORMATS)
    assert len(samples) == table.count("| `{")
    for name, sample in samples:
        group_set = read_jsonl(json.loads(sample))
        assert group_set.format == name
        assert "not used" not in group_set.notes[0]


class TestTranscripts:
    def test_transcripts_that_are_not_pairs_are_counted(self, read_jsonl: Any) -> None:
        good = {"chosen": TREE + " a", "rejected": TREE + " b"}
        other = {"chosen": TREE + " a", "rejected": "\n\nHuman: no\n\nAssistant: b"}
        group_set = read_jsonl(
            good, other, other, {"chosen": TREE + " a\n\nHuman: and?", "rejected": TREE + " b"},
            {"chosen": TREE + " a", "rejected": "words"}, good,
        )  # fmt: skip
        assert [group.id for group in group_set.groups] == ["0", "5"]
        assert group_set.notes[1] == (
            "rows.jsonl: 2 x left out: the two transcripts differ before the last Assistant turn "
            "(first: rows.jsonl, line 2)"
        )
        assert group_set.notes[2:] == (
            "rows.jsonl: 1 x left out: a transcript ends with a Human turn (first: rows.jsonl, line 4)",
            "rows.jsonl: 1 x left out: no transcript of Human and Assistant turns (first: rows.jsonl, line 5)",
        )

    def test_an_error_where_no_row_is_left(self, refusal: Any) -> None:
        message = str(refusal({"chosen": TREE + " a", "rejected": "\n\nHuman: no\n\nAssistant: b"}))
        assert "no row can be used: 1 x left out: the two transcripts differ" in message


class TestCountedEvents:
    def test_unknown_message_fields_are_kept_for_the_template(self, read_jsonl: Any) -> None:
        group_set = read_jsonl(
            {"messages": [{**user("p"), "name": "Ann", "mood": "calm", "tool_calls": None}, assistant("a")]}
        )
        note = "rows.jsonl: 1 x field 'mood' of messages kept for the chat template (first: rows.jsonl, line 1)"
        assert group_set.notes[1:] == (note,)
        assert group_set.groups[0].prompt == ({**user("p"), "name": "Ann", "mood": "calm"},)

    def test_the_rating_used_as_score_is_named(self, read_jsonl: Any) -> None:
        row = {"instruction": "p", "completions": [{"response": "a", "overall_score": 1, "fine-grained_score": 2}]}
        assert "1 x scores taken from 'overall_score' of the completions" in read_jsonl(row).notes[1]

    def test_a_prompt_repeated_in_the_responses_is_counted(self, read_jsonl: Any) -> None:
        row = {
            "prompt": "p",
            "chosen": [user("p"), assistant("a")],
            "rejected": [user("p"), assistant("b")],
        }
        assert "1 x prompt repeated in the responses, taken once" in read_jsonl(row).notes[1]

    def test_earlier_assistant_turns_are_counted(self, read_jsonl: Any) -> None:
        row = {"messages": [user("p"), assistant("a"), user("q"), assistant("b")]}
        assert (
            "1 x earlier assistant turns are part of the prompt, the last one is the response"
            in read_jsonl(row).notes[1]
        )
