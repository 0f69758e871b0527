"""Tool calls, tools and other context of conversations, in the forms of several data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penchant.data.checks import check_groups
from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.messages import Context, Conversation, context_of, is_blank
from penchant.data.reading import read_groups
from penchant.data.review import Review
from penchant.data.splitting import split_by_prompt
from penchant.data.writing import write_groups

SCHEMA = {"name": "weather", "description": "Of a city.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": SCHEMA}
USER = {"role": "user", "content": "Rain in Rome?"}
ANSWER = {"role": "assistant", "content": "No."}


def call(city: str, **fields: Any) -> dict[str, Any]:
    return {**fields, "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}


def calling(city: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [call(city)]}


RESULT = {"role": "tool", "content": '{"rain": false}'}
CALL_WITH_RESULT = (USER, calling("Rome"), RESULT)


OPENAI = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]},
    {**RESULT, "tool_call_id": "c1", "name": "weather"},
    ANSWER,
]  # fmt: skip
TURNS = [
    {"from": "human", "value": "Rain in Rome?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
    {"from": "observation", "value": '{"rain": false}'},
    {"from": "gpt", "value": "No."},
]
SWIFT = [
    USER,
    {"role": "tool_call", "content": '{"name": "weather", "arguments": {"city": "Rome"}}'},
    {"role": "tool_response", "content": '{"rain": false}'},
    ANSWER,
]
OLD = [
    USER,
    {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'}},
    {"role": "function", "name": "weather", "content": '{"rain": false}'},
    ANSWER,
]
CALLED = {**calling("Rome"), "content": ""}
SPELLINGS: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
    ("OpenAI", {"messages": OPENAI, "tools": [TOOL]},
     (USER, {"role": "assistant", "tool_calls": [call("Rome", id="c1")]},
      {**RESULT, "tool_call_id": "c1", "name": "weather"})),
    ("TRL", {"prompt": [USER], "completion": [calling("Rome"), RESULT, ANSWER], "tools": json.dumps([SCHEMA])},
     (USER,)),
    ("LLaMA-Factory", {"conversations": TURNS, "tools": json.dumps([SCHEMA])}, (USER, CALLED, RESULT)),
    ("ms-swift", {"messages": SWIFT, "tools": json.dumps([json.dumps(SCHEMA)])}, (USER, CALLED, RESULT)),
    ("OpenAI's functions", {"messages": OLD, "tools": [{"type": "function", **SCHEMA}]},
     (*CALL_WITH_RESULT[:2], {**RESULT, "name": "weather"})),
]  # fmt: skip


@pytest.mark.parametrize(("row", "prompt"), [case[1:] for case in SPELLINGS], ids=[case[0] for case in SPELLINGS])
def test_every_form_of_a_call_is_read_as_openais(read_jsonl: Any, row: dict[str, Any], prompt: tuple[Any, ...]) -> None:
    (group,) = read_jsonl(row).groups
    assert group.prompt == Conversation(prompt, Context(tools=(TOOL,)))
    assert group.candidates[0][-1] == ANSWER


def test_parallel_calls_in_separate_turns_become_one_turn(read_jsonl: Any) -> None:
    turns = [TURNS[0], {"from": "gpt", "value": "I look."}, TURNS[1], TURNS[1], TURNS[2], TURNS[3]]
    group_set = read_jsonl({"conversations": turns})
    assert group_set.groups[0].prompt[1] == {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [call("Rome"), call("Rome")],
    }
    assert any("2 x calls joined to the assistant's turn" in note for note in group_set.notes)


def test_a_call_turn_with_reasoning_in_front(read_jsonl: Any) -> None:
    turn = {"from": "function_call", "value": "<think>hm</think>" + TURNS[1]["value"]}
    (group,) = read_jsonl({"conversations": [TURNS[0], turn]}).groups
    assert group.candidates[0] == ({**calling("Rome"), "content": "<think>hm</think>"},)


def test_a_call_turn_that_is_no_json_stays_text_and_is_counted(read_jsonl: Any) -> None:
    group_set = read_jsonl({"conversations": [TURNS[0], {"from": "function_call", "value": "weather()"}, TURNS[3]]})
    assert group_set.groups[0].prompt[1] == {"role": "assistant", "content": "weather()"}
    assert any("that are not JSON" in note for note in group_set.notes)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": [USER], "completion": [{"role": "assistant", "tool_calls": [
                {"function": {"name": "weather", "arguments": "{city}"}}]}]},
            "column 'completion[0].tool_calls[0].function.arguments' is text, \"{city}\"; expected the call's arg",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ANSWER]},
         "column 'messages[0].content[0].type' is text, \"image_url\"; expected parts of type text"),
        ({"messages": [USER, ANSWER], "tools": "weather"}, "column 'tools' is text, \"weather\"; expected a list of"),
        ({"messages": [USER, ANSWER], "tools": [{"parameters": {}}]}, "column 'tools[0]' is an object"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": {"tools": []}}, "no variable 'tools', which is a column"),
        ({"messages": [USER, ANSWER], "documents": ["x"]}, "column 'documents[0]' is text, \"x\"; expected a document"),
    ],
)  # fmt: skip
def test_refused(refusal: Any, row: dict[str, Any], message: str) -> None:
    error = refusal(row)
    assert message in error.what
    assert error.where == "rows.jsonl, line 1"


def test_text_parts_are_kept(read_jsonl: Any) -> None:
    parts = [{"type": "text", "text": "Rain in"}, {"type": "text", "text": "Rome?"}]
    (group,) = read_jsonl({"messages": [{"role": "user", "content": parts}, ANSWER]}).groups
    assert group.prompt[0]["content"] == parts
    assert as_text(group.prompt) == "user: Rain in\nRome?"


def test_tools_repeated_in_the_system_text_are_counted(read_jsonl: Any) -> None:
    system = {"role": "system", "content": f"<tools>{json.dumps(SCHEMA)}</tools>"}
    group_set = read_jsonl({"messages": [system, USER, ANSWER], "tools": json.dumps([SCHEMA])})
    assert any("data.columns={unused: tools}" in note for note in group_set.notes)
    read_jsonl({"messages": [USER, ANSWER], "tools": "weather"}, columns={"unused": "tools"})


def test_empty_columns_count_as_absent(read_jsonl: Any) -> None:
    (group,) = read_jsonl(
        {"messages": [USER, ANSWER], "tools": "[]", "documents": [], "chat_template_kwargs": {}}
    ).groups
    assert context_of(group.prompt).columns() == {}


PAIR = {"prompt": [USER], "chosen": [calling("Rome")], "rejected": [calling("Oslo")], "tools": [TOOL]}


def test_candidates_that_differ_only_in_their_calls_are_distinct_and_not_empty(read_jsonl: Any) -> None:
    (group,) = read_jsonl(PAIR).groups
    assert not any(map(is_blank, group.candidates))
    assert as_text(group.candidates[0]) != as_text(group.candidates[1])
    report = check_groups([group])
    assert report.checks["empty_candidates"].count == 0
    assert report.checks["identical_in_a_pair"].count == 0


def test_prompts_that_differ_only_in_their_tools_are_distinct(read_jsonl: Any) -> None:
    forecast = {**TOOL, "function": {**SCHEMA, "name": "forecast"}}
    groups = read_jsonl(PAIR, {**PAIR, "tools": [forecast]}, {**PAIR, "chat_template_kwargs": {"deep": True}}).groups
    assert check_groups(groups).counts.prompts == 3
    assert len({as_text(group.prompt) for group in groups}) == 3
    train, held_out = split_by_prompt(groups, held_out=0.3, seed=0)
    assert (len(train), len(held_out)) == (2, 1)
    assert groups[0] != groups[1]


def test_the_context_of_messages_is_written_and_read_back(read_jsonl: Any, tmp_path: Path) -> None:
    context_columns = {"documents": [{"title": "t", "text": "x"}], "chat_template_kwargs": {"deep": False}}
    groups = read_jsonl(
        {**PAIR, **context_columns, "chosen": [calling("Rome"), RESULT, ANSWER]}, {**PAIR, "system": "Be brief."}
    ).groups
    write_groups(groups, tmp_path / "out.jsonl")
    assert read_groups(tmp_path / "out.jsonl").groups == groups
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["documents"] == context_columns["documents"]


def test_changed_tools_make_a_verdict_stale(read_jsonl: Any, tmp_path: Path) -> None:
    (group,) = read_jsonl(PAIR).groups
    (changed_group,) = read_jsonl({**PAIR, "tools": [{**TOOL, "function": {**SCHEMA, "name": "forecast"}}]}).groups
    Review([group], tmp_path / "v.jsonl").give(group, "accept")
    assert Review([changed_group], tmp_path / "v.jsonl").stale == 1


def test_a_call_with_different_results_belongs_to_the_responses(read_jsonl: Any) -> None:
    wet = {"role": "tool", "content": "rain"}
    chosen, rejected = (
        [*CALL_WITH_RESULT, ANSWER],
        [USER, calling("Rome"), wet, {"role": "assistant", "content": "Yes."}],
    )
    (group,) = read_jsonl({"chosen": chosen, "rejected": rejected}).groups
    assert group.prompt == (USER,)
    assert [[turn["role"] for turn in candidate] for candidate in group.candidates] == [
        ["assistant", "tool", "assistant"]
    ] * 2


def test_message_ids_do_not_split_the_shared_prompt(read_jsonl: Any) -> None:
    chosen, rejected = [{**USER, "id": 1}, ANSWER], [{**USER, "id": 2}, {**ANSWER, "content": "Yes."}]
    (group,) = read_jsonl({"chosen": chosen, "rejected": rejected}).groups
    assert group.prompt == ({**USER, "id": 1},)


def test_null_fields_that_a_table_adds_are_removed(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    second_tool = {"type": "function", "function": {"name": "sum", "parameters": {"type": "object", "required": ["x"]}}}
    first_tool = {
        "type": "function",
        "function": {**SCHEMA, "parameters": {"properties": {"city": {"type": "string"}}}},
    }
    rows = [
        {"messages": [USER, {**calling("Rome"), "content": None}], "tools": [first_tool]},
        {"messages": [USER, ANSWER], "tools": [second_tool]},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    first_group, second_group = read_groups(tmp_path / "rows.parquet").groups
    assert context_of(second_group.prompt).tools == (second_tool,)
    assert first_group.candidates == ((calling("Rome"),),)


SYSTEM = "Be brief."
SYSTEM_TURN = {"role": "system", "content": SYSTEM}
TREE = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"
WITH_SYSTEM: dict[str, dict[str, Any]] = {
    "pairs": {"prompt": "p", "chosen": "a", "rejected": "b"},
    "pairs of messages": {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]},
    "implicit_prompt": {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "b"}]},
    "several_rejected": {"prompt": "p", "chosen": "a", "rejected": ["b", "c"]},
    "unpaired": {"prompt": "p", "completion": "a", "label": True},
    "unpaired messages": {"messages": [USER, ANSWER], "label": True},
    "ranked": {"prompt": "p", "responses": ["a", "b"], "best": 1},
    "penchant": {"prompt": "p", "candidates": ["a", "b"], "preferred": 1},
    "ultrafeedback": {
        "instruction": "p",
        "completions": [{"response": "a", "score": 1}, {"response": "b", "score": 2}],
    },
    "llama_factory": {"conversations": [USER], "chosen": ANSWER, "rejected": ANSWER},
    "alpaca": {"instruction": "p", "input": "", "output": ["a", "b"]},
    "ms_swift": {"messages": [USER, ANSWER], "rejected_response": "b"},
    "nemo_rl": {"context": [USER], "completions": [{"rank": 0, "completion": [ANSWER]}]},
    "sft": {"prompt": "p", "completion": "a"},
    "prompts": {"prompt": "p"},
    "hh": {"chosen": TREE + " a", "rejected": TREE + " b"},
}


@pytest.mark.parametrize("row", WITH_SYSTEM.values(), ids=WITH_SYSTEM)
def test_every_format_uses_a_system_column(read_jsonl: Any, row: dict[str, Any]) -> None:
    with_system, without_system = read_jsonl({**row, "system": SYSTEM}), read_jsonl(row)
    assert (with_system.format, len(with_system.groups)) == (without_system.format, 1)
    assert "not used" not in with_system.notes[0]
    plain_group, group = without_system.groups[0], with_system.groups[0]
    assert group.prompt[0] == SYSTEM_TURN
    if not isinstance(plain_group.prompt, str):
        assert group.prompt[1:] == plain_group.prompt
    assert group.pairs == plain_group.pairs
    assert all(not isinstance(candidate, str) for candidate in group.candidates)


def test_one_row_with_a_system_text_turns_all_rows_into_messages(read_jsonl: Any) -> None:
    row = WITH_SYSTEM["pairs"]
    group_set = read_jsonl({**row, "system": SYSTEM}, {**row, "system": ""}, {**row, "system": None})
    assert [[turn["role"] for turn in group.prompt] for group in group_set.groups] == [
        ["system", "user"],
        ["user"],
        ["user"],
    ]
    assert any("read as messages" in note for note in group_set.notes)


def test_a_transcript_with_a_system_text_becomes_messages(read_jsonl: Any) -> None:
    (group,) = read_jsonl({**WITH_SYSTEM["hh"], "system": SYSTEM}).groups
    turns = ("system", SYSTEM), ("user", "hi"), ("assistant", "hello"), ("user", "why?")
    assert [(turn["role"], turn["content"]) for turn in group.prompt] == list(turns)
    assert [candidate[0]["content"] for candidate in group.candidates] == ["a", "b"]


def test_conversations_with_different_contexts_differ() -> None:
    conversation = Conversation((USER,))
    assert conversation == (USER,) == conversation
    assert Conversation((USER,), Context(tools=(TOOL,))) != (USER,)
    assert Conversation((USER,), Context(tools=(TOOL,))) != (USER,)
    group = PreferenceGroup(Conversation((USER,), Context(tools=(TOOL,))), ("a",))
    assert group != PreferenceGroup((USER,), ("a",))


def test_a_message_with_reasoning_needs_no_content(read_jsonl: Any) -> None:
    reasoning = {"role": "assistant", "reasoning_content": "It is dry there."}
    (group,) = read_jsonl({"prompt": [USER], "completion": [{**reasoning, "content": None}]}).groups
    assert group.candidates == ((reasoning,),)
    (answered_group,) = read_jsonl({"prompt": [USER], "completion": [{**reasoning, **ANSWER}]}).groups
    assert answered_group.candidates[0][0]["reasoning_content"] == "It is dry there."


def test_every_call_of_one_message_is_read(read_jsonl: Any) -> None:
    parallel = {"role": "assistant", "tool_calls": [call("Rome", id="c1"), call("Oslo", id="c2")]}
    (group,) = read_jsonl({"messages": [USER, parallel, RESULT, RESULT, ANSWER]}).groups
    assert group.prompt[1]["tool_calls"] == parallel["tool_calls"]


def test_equal_system_texts_in_column_and_conversation_are_merged(read_jsonl: Any) -> None:
    row = {"messages": [SYSTEM_TURN, USER, ANSWER]}
    assert read_jsonl({**row, "system": SYSTEM}).groups == read_jsonl(row).groups


@pytest.mark.parametrize("role", ["system", "developer"])
def test_two_system_texts_are_an_error(refusal: Any, role: str) -> None:
    error = refusal({"messages": [{**SYSTEM_TURN, "role": role}, USER, ANSWER], "system": "Be long."})
    assert "no system text where the conversation has a system message" in str(error)


def test_an_empty_system_text_beside_tools_adds_no_message(read_jsonl: Any) -> None:
    (group,) = read_jsonl({"messages": [USER, ANSWER], "tools": [TOOL], "system": ""}).groups
    assert group.prompt == Conversation((USER,), Context(tools=(TOOL,)))
