"""The requests of lm-evaluation-harness: grouped by context, cut into windows, their settings read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from penchant.data.tokenized import Ids
from penchant.errors import ConfigError
from penchant.evaluation.answering import Sampling

DEFAULT_NEW_TOKENS = 256
"""Tokens to generate where a task does not say, as the harness's own models have it."""


class Request(Protocol):
    """The attributes of the harness's `Instance` that are used here."""

    task_name: str | None
    doc_id: int | None

    @property
    def args(self) -> tuple[Any, ...]: ...


def by_context(requests: Sequence[Request]) -> list[list[int]]:
    """Indices of the requests with one document and context, in order; each list is one preference group."""
    groups: dict[tuple[str | None, int | None, str], list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault((request.task_name, request.doc_id, request.args[0]), []).append(i)
    return list(groups.values())


def rolling_windows(ids: Ids, start: int, length: int) -> list[tuple[Ids, Ids]]:
    """(context, predicted) windows of at most `length` tokens in which each id is predicted exactly once.

    The first window's context is the token `start`, the context of the others is the preceding token; the last window
    has fewer tokens to predict, and as many context tokens as fit.

    Args:
        ids: [T] token ids of the text.
    """
    windows = []
    start_index = 0
    while start_index < len(ids):
        end = min(start_index + length - 1, len(ids))
        context = ids[max(0, end - length) : start_index] if start_index else np.array([start], dtype=np.int64)
        windows.append((context, ids[start_index:end]))
        start_index = end
    return windows


@dataclass(frozen=True)
class Generation:
    """Generation settings of a request: sampling, and strings that end the text."""

    sampling: Sampling
    stops: tuple[str, ...]

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], where: str) -> Generation:
        """Generation settings from the harness's dictionary.

        Raises:
            ConfigError: a setting is not supported here.
        """
        supported = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
        if unknown := sorted(set(settings) - supported):
            raise ConfigError(
                f"generation settings {', '.join(unknown)} are not known; known are {', '.join(sorted(supported))}",
                where=where,
                fix="take them out of the task's generation_kwargs",
            )
        until = settings.get("until") or ()
        temperature = float(settings.get("temperature", 1.0)) if settings.get("do_sample", False) else 0.0
        sampling = Sampling(
            max_new_tokens=int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS)),
            temperature=temperature,
            top_p=float(settings.get("top_p", 1.0)),
        )
        return cls(sampling, (until,) if isinstance(until, str) else tuple(until))

    def truncate(self, text: str) -> str:
        """The text before the first stop string."""
        ends = (position for stop in self.stops if stop and (position := text.find(stop)) >= 0)
        return text[: min(ends, default=len(text))]


def request_name(request: Request) -> str:
    """Task and document of a request, for messages."""
    return f"{request.task_name}, document {request.doc_id}"
