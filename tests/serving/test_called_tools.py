"""Tool calls parsed from answers that arrive in pieces."""

from __future__ import annotations

import json

import pytest

from penchant.errors import DataError
from penchant.evaluation.tool_calls.calls import Argument
from penchant.serving.constraints import AnswerText, offered_function
from penchant.serving.requests import Tool

TOOLS = [Tool.model_validate({"type": "function", "function": {"name": name}}) for name in ("cat", "get.size")]

CALL = '{"name": "cat", "arguments": {"size": 2}}'
CALLED = [("cat", {"size": 2})]

ANSWERS = {
    "words": ("The cat is old.", "The cat is old.", []),
    "a call": (CALL, "", CALLED),
    "a call after a blank": ("\n " + CALL, "", CALLED),
    "a list of calls": (f"[{CALL}, {CALL}]", "", CALLED * 2),
    "calls in tags": (
        f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>",
        "",
        CALLED * 2,
    ),
    "words and a tag": (f"Let me see.\n<tool_call>{CALL}</tool_call>", "Let me see.\n", CALLED),
    "a tag that is not closed": (f"<tool_call>{CALL}", "", CALLED),
    "a thought and a call": (f"I call.</think>\n{CALL}", "I call.</think>", CALLED),
    "a thought and words": ("I speak.</think>\nYes.", "I speak.</think>\nYes.", []),
    "a dot that templates forbid": ('{"name": "get_size", "arguments": {}}', "", [("get.size", {})]),
    "a call in a fence": (f"```json\n{CALL}\n```", "", CALLED),
    "a function that is not on offer": (
        '{"name": "dog", "arguments": {}}',
        '{"name": "dog", "arguments": {}}',
        [],
    ),
    "JSON that is no call": ("[1, 2]", "[1, 2]", []),
    "no call": ("[]", "[]", []),
    "the beginning of a tag": ("a <tool_ca", "a <tool_ca", []),
    "half of a call": ('{"name": "cat", "argu', '{"name": "cat", "argu', []),
    "nothing": ("", "", []),
}


@pytest.mark.parametrize("case", ANSWERS)
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_the_pieces_of_an_answer_add_up_to_the_whole(case: str, size: int) -> None:
    answer, content, calls = ANSWERS[case]
    text = AnswerText(TOOLS)
    sent_text = ""
    for start in range(0, len(answer), size):
        sent_text += text.add(answer[start : start + size])
        assert content.startswith(sent_text)
    end, tool_calls = text.finish()
    assert sent_text + end == content
    functions = [call["function"] for call in tool_calls]
    assert [(function["name"], json.loads(function["arguments"])) for function in functions] == calls
    assert len({call["id"] for call in tool_calls}) == len(calls)


def test_text_is_sent_at_once() -> None:
    text = AnswerText(TOOLS)
    assert [text.add(word) for word in ("The ", "cat <", "b> is", " old")] == ["The ", "cat ", "<b> is", " old"]


def test_without_tools_calls_are_text() -> None:
    text = AnswerText([])
    assert text.add(CALL) == CALL
    assert text.finish() == ("", [])


def test_a_tools_schema_may_leave_types_out() -> None:
    parameters = {
        "properties": {"size": {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "name": {"type": "string"}},
        "required": ["name"],
    }
    tool = Tool.model_validate({"function": {"name": "cat", "parameters": parameters}})
    function = offered_function(tool)
    assert function.arguments == {"size": Argument("any"), "name": Argument("string")}
    assert function.required == ("name",)
    assert offered_function(TOOLS[0]).arguments == {}
    for wrong in ({"required": ["a"]}, {"properties": ["a"]}, {"properties": {"a": True}}):
        with pytest.raises(DataError):
            offered_function(Tool.model_validate({"function": {"name": "cat", "parameters": wrong}}))
