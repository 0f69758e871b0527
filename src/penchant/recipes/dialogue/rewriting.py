"""Rewriting of an answer in two styles, supportive and prescriptive, by a language model or by simple rules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from penchant.api import (
    AnswerCache,
    ConfigError,
    DataError,
    Endpoint,
    JudgeConfig,
    Unanswered,
    cache_folder,
    fill,
    read_rows,
)
from penchant.recipes.dialogue.human_centric import refuses

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


SUPPORTIVE = """Rewrite the answer below for a worried caregiver: warm, in plain words, acknowledging how they feel,
suggesting rather than ordering. Keep every fact, number and name; add none. Reply with the rewritten answer alone.

[Question]
{question}

[Answer]
{answer}"""

PRESCRIPTIVE = """Rewrite the answer below as a clinical directive: impersonal, technical terms, orders rather than
suggestions, no word of how the reader may feel. Keep every fact, number and name; add none.
Reply with the rewritten answer alone.

[Question]
{question}

[Answer]
{answer}"""

MAX_LENGTH_RATIO = 4
"""Maximum words of a rewriting, as a multiple of the answer's words; a longer reply is not a rewriting."""


class StyledAnswers(NamedTuple):
    """The same facts in both styles."""

    supportive: str
    prescriptive: str


class Rewriter(Protocol):
    """A function that returns both styles of every answer; None where the rewriting failed."""

    def __call__(self, answers: Sequence[AnswerRecord]) -> list[StyledAnswers | None]: ...


@dataclass(frozen=True)
class EndpointRewriter:
    """A rewriter that asks a language model for both styles; its rewritings are cached on disk.

    Args:
        supportive, prescriptive: prompt templates with {question} and {answer}.
    """

    endpoint: JudgeConfig
    supportive: str = SUPPORTIVE
    prescriptive: str = PRESCRIPTIVE

    def __call__(self, answers: Sequence[AnswerRecord]) -> list[StyledAnswers | None]:
        """Both styles of every answer; a reply that is empty, too long or a refusal is retried, then given up as None.

        Raises:
            ConfigError: the endpoint refuses, or gives no rewriting for a whole batch of answers.
        """
        rewritings: list[StyledAnswers | None] = []
        batch_size = 4 * self.endpoint.parallel
        with (
            closing(AnswerCache(f"rewriter {self.endpoint.source}", cache_folder())) as cache,
            ThreadPoolExecutor(self.endpoint.parallel) as pool,
        ):
            for start in range(0, len(answers), batch_size):
                batch = answers[start : start + batch_size]
                results: list[StyledAnswers | Unanswered] = list(
                    pool.map(lambda answer: self._rewrite_both(answer, cache), batch)
                )
                failures = [result for result in results if isinstance(result, Unanswered)]
                if len(failures) == len(batch):
                    raise ConfigError(
                        f"the endpoint gave no rewriting of {len(batch)} answers in a row; the last: {failures[-1]}",
                        where=self.endpoint.url,
                        fix="check that it is up and follows instructions; earlier rewritings are cached",
                    )
                rewritings += [None if isinstance(result, Unanswered) else result for result in results]
        return rewritings

    def _rewrite_both(self, answer: AnswerRecord, cache: AnswerCache) -> StyledAnswers | Unanswered:
        try:
            return StyledAnswers(
                *(self._rewrite(template, answer, cache) for template in (self.supportive, self.prescriptive))
            )
        except Unanswered as error:
            return error

    def _rewrite(self, template: str, answer: AnswerRecord, cache: AnswerCache) -> str:
        prompt = fill(template, question=answer.question, answer=answer.answer)
        cached = cache.get(prompt)
        if cached is not None:
            return str(cached)
        max_words = MAX_LENGTH_RATIO * max(20, len(answer.answer.split()))

        def parse_reply(reply: str) -> str | None:
            text = reply.strip()
            return text if 0 < len(text.split()) <= max_words and not refuses(text) else None

        text = Endpoint(self.endpoint).ask(prompt, parse_reply)
        cache.keep([(prompt, text)])
        return text


OPENERS = (
    "I understand that this can be worrying.",
    "It is understandable that you ask, and I am glad you did.",
    "I hear you, and you are not alone with this.",
    "That sounds difficult, and I am sorry that you have to deal with it.",
    "Many people feel unsure about this, and it makes sense to ask.",
    "Thank you for asking; I can imagine that this is on your mind.",
)
CLOSERS = (
    "Would you like to tell me more about what worries you?",
    "If you like, a doctor can go through this with you.",
    "Please take your time, and feel free to ask anything else.",
    "Perhaps it may help to talk this over with someone you trust.",
)
ORDERS = (
    "The following is to be noted.",
    "Observe the following without exception.",
    "The patient must be informed as follows.",
    "Compliance with the following is required.",
    "This is established and is not subject to discussion.",
    "The clinical position is as stated.",
)
WARNINGS = (
    "Non-compliance is inadvisable.",
    "Further inquiry is to be directed to the responsible physician.",
    "No further explanation is required.",
    "Adherence is mandatory.",
)
PLAIN_WORDS: Mapping[str, str] = {
    "hypertension": "high blood pressure",
    "physician": "doctor",
    "physicians": "doctors",
    "medication": "medicine",
    "medications": "medicines",
    "fracture": "broken bone",
    "edema": "swelling",
    "pruritus": "itching",
    "dyspnea": "shortness of breath",
    "fatigue": "tiredness",
}
"""Technical words and their plain words; either can replace the other anywhere."""


@dataclass(frozen=True)
class RuleRewriter:
    """A rewriter without a language model: the answer's first sentences, with one of a few phrases before and after.

    Such pairs teach only those phrases and `PLAIN_WORDS`; `penchant data audit` nearly always recognises both sides.

    Args:
        sentences: maximum number of whole sentences that are kept.
        most_words: maximum words that are kept; an answer with a longer first sentence is not rewritten.
    """

    sentences: int = 3
    most_words: int = 60

    def __call__(self, answers: Sequence[AnswerRecord]) -> list[StyledAnswers | None]:
        return [self._rewrite(answer) for answer in answers]

    def _rewrite(self, answer: AnswerRecord) -> StyledAnswers | None:
        facts = ""
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(answer.answer.split()))[: self.sentences]:
            if len(f"{facts} {sentence}".split()) > self.most_words:
                break
            facts = f"{facts} {sentence}".strip()
        if not facts:
            return None
        choice_bytes = blake2b(
            f"{answer.question}\n{answer.answer}".encode(errors="surrogatepass"), digest_size=4
        ).digest()
        opener, closer, order, warning = (
            choices[byte % len(choices)]
            for choices, byte in zip((OPENERS, CLOSERS, ORDERS, WARNINGS), choice_bytes, strict=True)
        )
        technical = {plain: word for word, plain in PLAIN_WORDS.items()}
        return StyledAnswers(
            f"{opener} {_replace_words(facts, PLAIN_WORDS)} {closer}",
            f"{order} {_replace_words(facts, technical)} {warning}",
        )


def _replace_words(text: str, words: Mapping[str, str]) -> str:
    """The text with words and phrases replaced; an initial capital stays a capital."""

    def replacement(match: re.Match[str]) -> str:
        new = words[match[0].lower()]
        return new[0].upper() + new[1:] if match[0][0].isupper() else new

    phrases = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.sub(rf"\b(?:{phrases})\b", replacement, text, flags=re.IGNORECASE)
