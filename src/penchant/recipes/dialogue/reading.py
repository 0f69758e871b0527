"""Questions and their answers, from rows of one or of whole dialogues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from penchant.data.files import read_rows
from penchant.errors import DataError

ANSWERING = frozenset({"assistant", "doctor", "gpt", "counsellor", "counselor", "therapist"})
"""Roles whose turns are answers."""


@dataclass(frozen=True)
class Answered:
    """One answer to a question.

    Attributes:
        rating: votes or any other score of the answer, higher is better; None where nobody gave one.
        source: what the answer must not go beyond, where there is such a text.
        topic: questions of one topic are never parted between training and test; None: its own.
    """

    question: str
    answer: str
    rating: float | None = None
    source: str | None = None
    topic: str | None = None


def read_answered(file: str, *, rating: str | None, turns: int) -> list[Answered]:
    """Rows of ``question`` and ``answer``, or of ``messages``; ``source`` and ``topic`` may stand beside them.

    Of a dialogue every turn of an answering role (`ANSWERING`) that follows another's is an answer.

    Args:
        rating: the field with an answer's rating, which every row must have; None where there is none.
        turns: of a dialogue, how many before an answer are its question.

    Raises:
        DataError: the file cannot be read, or a row is neither.
    """
    answered = [each for where, row in read_rows(file) for each in _row(row, where, rating, turns)]
    if not answered:
        raise DataError("there is no answer in it", where=file, fix="give rows of question and answer, or of messages")
    return answered


def _row(row: Mapping[str, Any], where: str, rating: str | None, turns: int) -> Iterator[Answered]:
    facts = (_rating(row, where, rating), _optional(row, "source", where), _optional(row, "topic", where))
    if "messages" in row:
        if rating is not None:
            raise DataError("a dialogue has no ratings", where=where, fix="set its pairs to styles")
        for question, answer in _turns(row["messages"], where, turns):
            yield Answered(question, answer, *facts)
        return
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise DataError(
                f"there is no text in '{name}'; the row holds {', '.join(row)}",
                where=where,
                fix="a row is {question, answer} or {messages}",
            )
    yield Answered(row["question"].strip(), row["answer"].strip(), *facts)


def _rating(row: Mapping[str, Any], where: str, name: str | None) -> float | None:
    if name is None:
        return None
    value = row.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError(
            f"'{name}' is {value!r}; expected the answer's rating",
            where=where,
            fix="name the field: rating, or use styles",
        )
    return float(value)


def _optional(row: Mapping[str, Any], name: str, where: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"'{name}' is {value!r}; expected text", where=where, fix="write text, or leave it out")
    return value


def _turns(messages: Any, where: str, turns: int) -> Iterator[tuple[str, str]]:
    if not isinstance(messages, list) or not all(
        isinstance(each, dict) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
        for each in messages
    ):
        raise DataError("no messages", where=where, fix='a message is {"role": ..., "content": ...}')
    for n, each in enumerate(messages):
        before = messages[max(0, n - turns) : n]
        if each["role"].lower() in ANSWERING and before and before[-1]["role"].lower() not in ANSWERING:
            # One turn is the question itself; of several it must be seen who said what.
            said = [turn["content"] if len(before) == 1 else f"{turn['role']}: {turn['content']}" for turn in before]
            if each["content"].strip():
                yield "\n".join(said).strip(), each["content"].strip()
