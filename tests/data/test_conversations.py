"""The end of a conversation's prompt, and errors of conversations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.data.conversations import split_shared_prompt
from penchant.data.fields import Cell, ReadLog, Row
from penchant.data.groups import Message


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"chosen": "a", "rejected": [assistant("b")]}, "column 'chosen' is text, \"a\"; expected messages"),
    ({"prompt": []}, "column 'prompt' is a list, []; expected at least one message"),
    ({"prompt": ["p"]}, "column 'prompt[0]' is text, \"p\"; expected an object with role or from"),
    ({"prompt": [{"role": "wizard", "content": "p"}]}, "column 'prompt[0].role' is text, \"wizard\"; expected a role"),
    ({"chosen": [{"role": "assistant", "content": [{"text": "a"}]}]}, "column 'chosen[0].content' is a list"),
    ({"chosen": [assistant(None)]}, "expected an object with content or value"),
    (
        {"chosen": [assistant(None) | {"tool_calls": [1]}]},
        "column 'chosen[0].tool_calls[0]' is a number, 1; expected a tool",
    ),
    (
        {"chosen": [user("q"), assistant("a")]},
        "expected a conversation that starts with the same prompt as 'chosen'",
    ),
    (
        {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        "expected an assistant's messages, or a whole conversation that holds the prompt",
    ),
    (
        {"chosen": [assistant("a"), user("b")]},
        "the response in column 'chosen' ends with a message of role 'user'",
    ),
]
BAD_ALONE: list[tuple[dict[str, Any], str]] = [
    (
        {"chosen": [user("p"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        "expected a conversation that starts with the same prompt as 'chosen'",
    ),
    (
        {
            "chosen": [user("p"), assistant("x"), user("q"), assistant("a")],
            "rejected": [user("p"), assistant("x"), user("r"), assistant("b")],
        },
        "the response in column 'chosen' begins with a message of role 'user'",
    ),
    (
        {"messages": [user("p"), assistant("a"), user("q")]},
        "begins with a message of role 'user'; expected the assistant's",
    ),
    ({"messages": [assistant("a")]}, "expected a message before the response"),
    (
        {"messages": [{"role": "system", "content": "s"}, user("p"), assistant("a")], "system": "t"},
        "where the conversation has",
    ),
    (
        {
            "conversations": [user("p"), assistant("x")],
            "chosen": assistant("a"),
            "rejected": assistant("b"),
        },
        "expected a conversation whose last turn is not the assistant's",
    ),
]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": [user("p")], "chosen": [assistant("a")], "rejected": [assistant("b")]} | row,
            message,
        )
        for row, message in BAD
    ]
    + BAD_ALONE,
)
def test_refused(refusal: Any, row: dict[str, Any], message: str) -> None:
    error = refusal(row)
    assert message in error.what
    assert error.where == "rows.jsonl, line 1"


@pytest.mark.parametrize(
    ("role", "ours"),
    [
        ("human", "user"),
        ("GPT", "assistant"),
        ("system", "system"),
        ("observation", "tool"),
        ("function_call", "assistant"),
    ],
)
def test_roles(read_jsonl: Any, role: str, ours: str) -> None:
    turn = {"from": role, "value": "x"}
    (group,) = read_jsonl({"conversations": [turn, {"from": "gpt", "value": "a"}]}).groups
    assert group.prompt == (Message(role=ours, content="x"),)


TURN = st.builds(Message, role=st.just("assistant"), content=st.sampled_from("abc"))


@given(st.lists(TURN, min_size=1, max_size=3), st.lists(st.lists(TURN, min_size=1, max_size=3), min_size=2, max_size=4))
def test_prompt_and_response_make_up_the_conversation(start: list[Message], tails: list[list[Message]]) -> None:
    conversations = [(*start, *tail) for tail in tails]
    row = Row({}, "here", 0, ReadLog())
    prompt, responses = split_shared_prompt(conversations, [Cell(list(whole), "x", row) for whole in conversations])
    assert [prompt + tuple(response) for response in responses] == conversations
    assert len(prompt) >= len(start)
    assert all(responses)
    # The prompt is the longest shared beginning: one more turn would differ, or leave a response empty.
    assert len({str(response[0]) for response in responses}) > 1 or min(map(len, responses)) == 1
