"""Bare prompts and responses as a user's and an assistant's message, for models with a chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from penchant.data.groups import Message, PreferenceGroup, Text, as_messages
from penchant.data.rendering import Rendering
from penchant.data.template_tokens import TemplateTokens
from penchant.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEXT = "plain_text_beside_chat_template"
"""Event of a bare group that a model with a chat template reads without it."""
SWITCH = (
    "to read them as a user's and an assistant's message: data.as_chat=true; to leave them plain without this line: "
    "data.as_chat=false"
)
TRANSCRIPT = ("Human:", "User:", "Assistant:")


def is_bare(prompt: Text, candidates: Sequence[Text] = ()) -> bool:
    """Whether a prompt and its candidates are plain text that is no transcript of turns and not empty."""
    if not isinstance(prompt, str) or not prompt.strip() or "[INST]" in prompt:
        return False
    return all(isinstance(candidate, str) for candidate in candidates) and not prompt.lstrip().startswith(TRANSCRIPT)


def bare_as_messages(group: PreferenceGroup) -> PreferenceGroup:
    """A bare group with its prompt as a user's message and every candidate as an assistant's; others unchanged."""
    return as_messages(group) if is_bare(group.prompt, group.candidates) else group


def prompt_as_message(prompt: Text) -> Text:
    """A bare prompt as a user's message; others unchanged."""
    return (Message(role="user", content=prompt),) if isinstance(prompt, str) and is_bare(prompt) else prompt


class AsChat:
    """`rendering.as_chat` for one tokenizer: whether a bare prompt is read as a user's message."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> None:
        self._setting = rendering.as_chat
        self._has_template = tokenizer.chat_template is not None
        self._marks = TemplateTokens.from_tokenizer(tokenizer).marks

    def group(self, group: PreferenceGroup) -> tuple[PreferenceGroup, str | None]:
        """The group as it is read, and the event to count where it stays plain unasked."""
        if self._setting == "false" or not is_bare(group.prompt, group.candidates) or self._is_rendered(group.prompt):
            return group, None
        if self._setting == "true":
            return as_messages(group), None
        return group, PLAIN_TEXT if self._has_template else None

    def prompt(self, prompt: Text) -> Text:
        """The prompt as it is read."""
        return prompt if self._setting != "true" or self._is_rendered(prompt) else prompt_as_message(prompt)

    def count_plain(self, prompts: Iterable[Text]) -> int:
        """How many bare prompts a chat model reads without its template because nothing says otherwise."""
        if self._setting != "auto" or not self._has_template:
            return 0
        return sum(is_bare(prompt) and not self._is_rendered(prompt) for prompt in prompts)

    def _is_rendered(self, prompt: Text) -> bool:
        """Whether plain text holds a token that the tokenizer's chat template writes around messages."""
        return isinstance(prompt, str) and any(mark in prompt for mark in self._marks)


def require_messages(groups: Sequence[PreferenceGroup]) -> list[PreferenceGroup]:
    """Every group as messages.

    Raises:
        DataError: a plain group that has no bare prompt, as a transcript or a text without one.
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
