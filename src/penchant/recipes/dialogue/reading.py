"""Reads questions and their answers, from rows with one question or from whole dialogues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from penchant.data.files import read_rows
from penchant.errors import DataError

ANSWERING = frozenset({"assistant", "doctor", "gpt", "counsellor", "counselor", "therapist"})
"""Roles whose turns are answers."""


@dataclass(frozen=True)
class AnswerRecord:
    """One answer to a question.

    Attributes:
        rating: votes or another score of the answer, higher is better; None without one.
        source: text that the answer must take its attributes from; None without one.
        topic: questions of one topic are all in training or all in test; None makes the question its own topic.
    """

    question: str
    answer: str
    rating: float | None = None
    source: str | None = None
    topic: str | None = None


def read_answer_records(file: str, *, rating: str | None, turns: int) -> list[AnswerRecord]:
    """The answers in a file of rows with ``question`` and ``answer``, or with ``messages``.

    Rows may also have ``source`` and ``topic``. In a dialogue every turn of an answering role (`ANSWERING`) that
    follows a turn of another role is an answer.

    Args:
        rating: name of the field with an answer's rating, which every row must have; None without ratings.
        turns: number of turns before an answer that form its question, in a dialogue.

    Raises:
        DataError: the file cannot be read, or a row is of neither form.
    """
    answers = [answer for where, row in read_rows(file) for answer in _row_answers(row, where, rating, turns)]
    if not answers:
        raise DataError("there is no answer in it", where=file, fix="give rows of question and answer, or of messages")
    return answers


def _row_answers(row: Mapping[str, Any], where: str, rating: str | None, turns: int) -> Iterator[AnswerRecord]:
    attributes = (_rating(row, where, rating), _optional(row, "source", where), _optional(row, "topic", where))
    if "messages" in row:
        if rating is not None:
            raise DataError("a dialogue has no ratings", where=where, fix="set its pairs to styles")
        for question, answer in _turns(row["messages"], where, turns):
            yield AnswerRecord(question, answer, *attributes)
        return
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise DataError(
                f"there is no text in '{name}'; the row holds {', '.join(row)}",
                where=where,
                fix="a row is {question, answer} or {messages}",
            )
    yield AnswerRecord(row["question"].strip(), row["answer"].strip(), *attributes)


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
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    ):
        raise DataError("no messages", where=where, fix='a message is {"role": ..., "content": ...}')
    for n, message in enumerate(messages):
        context = messages[max(0, n - turns) : n]
        if message["role"].lower() in ANSWERING and context and context[-1]["role"].lower() not in ANSWERING:
            # A single turn is the question itself; several turns are written with their roles.
            texts = [turn["content"] if len(context) == 1 else f"{turn['role']}: {turn['content']}" for turn in context]
            if message["content"].strip():
                yield "\n".join(texts).strip(), message["content"].strip()
