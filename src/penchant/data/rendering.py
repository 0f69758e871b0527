"""Settings of the step from rows to the text that a model reads, shared by all verbs and runs."""

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
        template_kwargs: variables for the chat template, as in ``{"enable_thinking": False}``; a row's variables
            override them.
        date: the date that a template writes as today's, as in ``2026-11-30``; None for the clock's.
        as_chat: whether plain prompts and responses become a user's and an assistant's message; ``auto`` leaves them
            plain and warns where the model has a chat template.
        control_text: treatment of control tokens inside messages: ``text`` without effect, the ``token`` itself, or an
            ``error``.
        learn: the assistant turns of a conversation to train on: the ``last`` one, or ``all``.
        refused: treatment of rows that the chat template refuses or the tokenizer cannot read: ``error`` or ``drop``.
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
"""Names that a chat template's variables cannot have, with the reason."""


PLAIN = Rendering()
"""The default settings."""
