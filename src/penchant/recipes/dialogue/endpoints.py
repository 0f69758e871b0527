"""Answers of a chat model behind an endpoint, for comparison with trained models."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from penchant.api import AnswerCache, ConfigError, Endpoint, JudgeConfig, Unanswered, cache_folder


def ask_questions(endpoint: JudgeConfig, questions: Sequence[str], max_tokens: int) -> list[str]:
    """The answer to every question, asked as a user's message; cached on disk, so that none is paid for twice.

    Args:
        max_tokens: maximum tokens of an answer, sent as ``max_tokens`` unless the endpoint's fields set it.

    Raises:
        ConfigError: the endpoint refuses, or gives no answer to a question in all attempts.
    """
    limited = endpoint.model_copy(update={"request": {"max_tokens": max_tokens, **endpoint.request}})
    with (
        closing(AnswerCache(f"answers {limited.source}", cache_folder())) as cache,
        ThreadPoolExecutor(endpoint.parallel) as pool,
    ):
        return list(pool.map(lambda question: _ask(limited, question, cache), questions))


def _ask(endpoint: JudgeConfig, question: str, cache: AnswerCache) -> str:
    cached = cache.get(question)
    if cached is not None:
        return str(cached)
    try:
        text = Endpoint(endpoint).ask(question, lambda reply: reply.strip() or None)
    except Unanswered as error:
        raise ConfigError(
            f"{endpoint.model} gave no answer to {question[:60]!r}: {error}",
            where=endpoint.url,
            fix="run again, which asks only what is not answered yet, or raise the endpoint's retries or timeout_s",
        ) from error
    cache.keep([(question, text)])
    return text
