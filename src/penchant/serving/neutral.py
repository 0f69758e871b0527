"""Parameters of the OpenAI protocol, and of servers that follow it, that are accepted without being supported.

A client library sends many of them with every request. A parameter is accepted only if it cannot change the answer,
with any value or with the value that means "off". With another value the request is refused, and the error names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WITHOUT_EFFECT = frozenset(
    {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
"""Parameters that never change an answer: its user, its storage and its price."""

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
"""The values at which each parameter has no effect."""

MESSAGE_OFF: Mapping[str, Sequence[Any]] = {"annotations": ([],), "tool_calls": ([],)}
"""The same for fields of a message: the official client sends an answer back with all its fields."""


def without_neutral(fields: Mapping[str, Any], supported: frozenset[str]) -> dict[str, Any]:
    """A request's parameters without nulls, without those of no effect, and without unsupported ones that are off."""
    return {
        name: value
        for name, value in fields.items()
        if value is not None and name not in WITHOUT_EFFECT and (name in supported or not is_off(name, value, OFF))
    }


def is_off(name: str, value: object, off: Mapping[str, Sequence[Any]]) -> bool:
    """Whether the parameter has no effect at this value."""
    return any(value == neutral for neutral in off.get(name, ()))


def refusal_text(name: str) -> str:
    """The message of the refusal of an unsupported parameter."""
    if name in OFF:
        values = " or ".join(repr(value) for value in OFF[name])
        return f"'{name}' is not supported: leave it out, or send {values}, which changes nothing"
    return f"'{name}' is not supported; leave it out"
