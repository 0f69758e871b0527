"""Conversion of plain prompts and responses to a user's and an assistant's message, for models with a chat template."""

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


class AsChat:
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
