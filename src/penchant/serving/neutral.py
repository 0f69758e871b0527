"""Parameters of the OpenAI protocol, and of servers that follow it, that are taken without being supported.

A client library sends many of them with every request. One is taken only where it cannot change the answer: whatever
its value, or at the value that means "off". At any other value the request is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WITHOUT_EFFECT = frozenset(
    {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
"""Parameters that never change an answer: whom it is for, whether and where it is kept, what it costs."""

OFF: Mapping[str, Sequence[Any]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "stop_token_ids": ([],),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "top_k": (-1, 0),
    "use_beam_search": (False,),
}
"""By parameter the values at which it does nothing."""

MESSAGE_OFF: Mapping[str, Sequence[Any]] = {"annotations": ([],), "tool_calls": ([],)}
"""The same of a message's fields: the official client sends an answer back with all that it has."""


def without_neutral(fields: Mapping[str, Any], supported: frozenset[str]) -> dict[str, Any]:
    """A request's parameters without nulls, those that never change an answer, and unsupported ones that are off."""
    return {
        name: value
        for name, value in fields.items()
        if value is not None and name not in WITHOUT_EFFECT and (name in supported or not is_off(name, value, OFF))
    }


def is_off(name: str, value: object, off: Mapping[str, Sequence[Any]]) -> bool:
    """Whether the parameter does nothing at this value."""
    return any(value == neutral for neutral in off.get(name, ()))


def refusal_text(name: str) -> str:
    """Why a parameter of this name is refused."""
    if name in OFF:
        values = " or ".join(repr(value) for value in OFF[name])
        return f"'{name}' is not supported: leave it out, or send {values}, which changes nothing"
    return f"'{name}' is not supported; leave it out"
