"""How rows become the text a model reads: the settings that every verb and every run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Learn = Literal["last", "all"]
AsChat = Literal["auto", "true", "false"]
ControlText = Literal["text", "token", "error"]
Refused = Literal["error", "drop"]


@dataclass(frozen=True)
class Rendering:
    """Settings of the step from a row to its text.

    Attributes:
        template_kwargs: variables handed to the chat template, as in ``{"enable_thinking": False}``; a row's own come
            on top.
        date: the day that a template writes as today's, as in ``2026-11-30``; None takes the clock's.
        as_chat: whether plain prompts and responses become a user's and an assistant's message; ``auto`` leaves them
            as they are and warns where the model has a chat template.
        control_text: what control tokens written inside a message are: ``text`` that cannot act as control, the
            ``token`` itself, or an ``error``.
        learn: which assistant turns of a conversation are learnt from: the ``last`` one, or ``all``.
        refused: what happens to a row that the chat template refuses, or whose text the tokenizer cannot read.
    """

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None
    as_chat: AsChat = "auto"
    control_text: ControlText = "text"
    learn: Learn = "last"
    refused: Refused = "error"


RESERVED = {
    **dict.fromkeys(("messages", "conversation"), "is the row's messages"),
    **dict.fromkeys(("tools", "documents"), "is a column of the data"),
    **dict.fromkeys(("add_generation_prompt", "continue_final_message"), "is set where a response begins"),
    "chat_template": "is data.chat_template",
    "strftime_now": "is the date: data.date",
    **dict.fromkeys(
        (
            "tokenize",
            "sanitize_control_tokens",
            "padding",
            "truncation",
            "max_length",
            "return_tensors",
            "return_dict",
            "return_assistant_tokens_mask",
            "tokenizer_kwargs",
        ),
        "is the tokenizer's, not the template's",
    ),
}
"""Names that a chat template's variables cannot have: why."""


PLAIN = Rendering()
"""The defaults."""
