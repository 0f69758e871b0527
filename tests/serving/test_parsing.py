"""Bodies that are not valid requests."""

from __future__ import annotations

import json

import pytest

from penchant.serving.requests import ChatRequest, Refusal
from penchant.serving.service import MAX_DEPTH, parse, read_json, require_json

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


def refusal_of_body(body: bytes) -> Refusal:
    with pytest.raises(Refusal) as error:
        parse(ChatRequest, body)
    assert error.value.status == 400
    return error.value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": "a \ud83d b"}]}, "messages.0.content"),
        ({"stop": ["\udc00"]}, "stop.0"),
        ({"tools": [{"function": {"name": "a", "\ud800": 1}}]}, "tools.0.function"),
        ({"user": "\ud800"}, "user"),
    ],
)
def test_a_lone_surrogate_is_refused_with_its_field(fields: dict, param: str) -> None:
    refusal = refusal_of_body(json.dumps({**REQUEST, **fields}).encode())
    assert refusal.param == param
    assert "half of a surrogate pair, U+D" in refusal.message


def test_a_surrogate_pair_is_text() -> None:
    body = json.dumps({**REQUEST, "stop": "\U0001f600"}).encode()
    assert b"\\ud83d" in body
    assert parse(ChatRequest, body).stop == "\U0001f600"


@pytest.mark.parametrize(
    "body",
    [
        b"\xed\xa0\x80",
        b'{"model": "\xed\xa0\x80"}',
        b'{"model": "\xff"}',
        b"",
        b"{",
        b'{"temperature": NaN}',
        b'{"seed": Infinity}',
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_not_json_in_utf_8(body: bytes) -> None:
    assert "not JSON in UTF-8" in refusal_of_body(body).message


def test_a_body_nested_too_deeply() -> None:
    def nested(depth: int) -> bytes:
        return b'{"tools": ' + b"[" * depth + b"]" * depth + b"}"

    assert read_json(nested(MAX_DEPTH))
    with pytest.raises(Refusal, match="tools is nested more than 64 deep"):
        read_json(nested(MAX_DEPTH + 1))


def test_a_body_that_is_not_an_object() -> None:
    assert "valid dictionary" in refusal_of_body(b"[]").message


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "text/plain;application/json"])
def test_content_types_other_than_json_are_refused(kind: str) -> None:
    require_json("application/json")
    require_json("Application/JSON; charset=utf-8")
    with pytest.raises(Refusal) as error:
        require_json(kind)
    assert error.value.status == 415
