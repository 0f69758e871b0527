"""The requests of lm-evaluation-harness: grouped by context, cut into windows, their settings read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from penchant.data.tokenized import Ids
from penchant.errors import ConfigError
from penchant.evaluation.generation import Sampling

DEFAULT_NEW_TOKENS = 256
"""Tokens to generate where a task does not say, as the harness's own models have it."""


class Request(Protocol):
    """What is used of the harness's `Instance`."""

    task_name: str | None
    doc_id: int | None

    @property
    def args(self) -> tuple[Any, ...]: ...


def by_context(requests: Sequence[Request]) -> list[list[int]]:
    """Indices of the requests of each document's context, in order: these are one preference group."""
    groups: dict[tuple[str | None, int | None, str], list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault((request.task_name, request.doc_id, request.args[0]), []).append(i)
    return list(groups.values())


def rolling_windows(ids: Ids, start: int, length: int) -> list[tuple[Ids, Ids]]:
    """(context, predicted) windows of at most `length` tokens in which each id is predicted exactly once.

    The first window's context is the token `start`, that of the others the one token before; the last window, which
    has fewer tokens to predict, has as many before them as fit.
    """
    windows = []
    done = 0
    while done < len(ids):
        end = min(done + length - 1, len(ids))
        context = ids[max(0, end - length) : done] if done else np.array([start], dtype=np.int64)
        windows.append((context, ids[done:end]))
        done = end
    return windows


@dataclass(frozen=True)
class Generation:
    """A request's settings: how to draw, and at which strings to stop."""

    sampling: Sampling
    stops: tuple[str, ...]

    @classmethod
    def of(cls, settings: Mapping[str, Any], where: str) -> Generation:
        """From the harness's dictionary.

        Raises:
            ConfigError: it has a setting that is not known here.
        """
        known = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
        if unknown := sorted(set(settings) - known):
            raise ConfigError(
                f"generation settings {', '.join(unknown)} are not known; known are {', '.join(sorted(known))}",
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

    def cut(self, text: str) -> str:
        """The text before the first of the strings to stop at."""
        return text[: min((at for stop in self.stops if stop and (at := text.find(stop)) >= 0), default=len(text))]


def named(request: Request) -> str:
    return f"{request.task_name}, document {request.doc_id}"
