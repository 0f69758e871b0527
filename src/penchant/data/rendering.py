"""The step from rows to the text that a model reads: its settings, and plain prompts as messages for chat models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from penchant.data.groups import Message, PreferenceGroup, Text, as_messages
from penchant.data.template_tokens import TemplateTokens
from penchant.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


PLAIN_TEXT = "plain_text_beside_chat_template"
"""Event: a plain prompt goes to a model with a chat template, and the template is not applied."""
SWITCH = (
    "to read them as a user's and an assistant's message: data.as_chat=true; to leave them plain without this line: "
    "data.as_chat=false"
)
TRANSCRIPT = ("Human:", "User:", "Assistant:")


def is_bare(prompt: Text, candidates: Sequence[Text] = ()) -> bool:
    """Whether a prompt and its candidates are plain text: not empty, and not a transcript of turns."""
    if not isinstance(prompt, str) or not prompt.strip() or "[INST]" in prompt:
        return False
    return all(isinstance(candidate, str) for candidate in candidates) and not prompt.lstrip().startswith(TRANSCRIPT)


def bare_as_messages(group: PreferenceGroup) -> PreferenceGroup:
    """The group with a bare prompt as a user's message and its candidates as the assistant's; others unchanged."""
    return as_messages(group) if is_bare(group.prompt, group.candidates) else group


def prompt_as_message(prompt: Text) -> Text:
    """A bare prompt as a user's message; any other prompt unchanged."""
    return (Message(role="user", content=prompt),) if isinstance(prompt, str) and is_bare(prompt) else prompt


class ChatConverter:
    """Decides for one tokenizer, by `rendering.as_chat`, whether a bare prompt becomes a user's message."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> None:
        self._setting = rendering.as_chat
        self._has_template = tokenizer.chat_template is not None
        self._marks = TemplateTokens.from_tokenizer(tokenizer).marks

    def group(self, group: PreferenceGroup) -> tuple[PreferenceGroup, str | None]:
        """The group after conversion, and the event to count where it stays plain without a setting that says so."""
        if self._setting == "false" or not is_bare(group.prompt, group.candidates) or self._is_rendered(group.prompt):
            return group, None
        if self._setting == "true":
            return as_messages(group), None
        return group, PLAIN_TEXT if self._has_template else None

    def prompt(self, prompt: Text) -> Text:
        """The prompt after conversion."""
        return prompt if self._setting != "true" or self._is_rendered(prompt) else prompt_as_message(prompt)

    def count_plain(self, prompts: Iterable[Text]) -> int:
        """Number of bare prompts to which the template is not applied because no setting decides it."""
        if self._setting != "auto" or not self._has_template:
            return 0
        return sum(is_bare(prompt) and not self._is_rendered(prompt) for prompt in prompts)

    def _is_rendered(self, prompt: Text) -> bool:
        """Whether plain text contains a token that the tokenizer's chat template writes around messages."""
        return isinstance(prompt, str) and any(mark in prompt for mark in self._marks)


def require_messages(groups: Sequence[PreferenceGroup]) -> list[PreferenceGroup]:
    """The groups as messages.

    Raises:
        DataError: the prompt of a plain group is a transcript, a rendered template or empty.
    """
    converted = [bare_as_messages(group) for group in groups]
    plain = [group.id for group in converted if isinstance(group.prompt, str)]
    if plain:
        raise DataError(
            f"{len(plain)} of {len(groups)} groups are plain text without a bare prompt: a transcript, a rendered "
            f"template or a text alone ({', '.join(plain[:5])})",
            fix="take these rows out, or write messages in their place",
        )
    return converted
