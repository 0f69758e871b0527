"""Bare prompts and responses as a user's and an assistant's message, for models with a chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from penchant.data.groups import Message, PreferenceGroup, Text
from penchant.data.rendering import Rendering
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

_MARKS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, frozenset[str]]] = WeakKeyDictionary()


def is_bare(prompt: Text, candidates: Sequence[Text] = ()) -> bool:
    """Whether a prompt and its candidates are plain text that is no transcript of turns and not empty."""
    if not isinstance(prompt, str) or not prompt.strip() or "[INST]" in prompt:
        return False
    return all(isinstance(candidate, str) for candidate in candidates) and not prompt.lstrip().startswith(TRANSCRIPT)


def as_messages(group: PreferenceGroup) -> PreferenceGroup:
    """A bare group with its prompt as a user's message and every candidate as an assistant's; others unchanged."""
    if not is_bare(group.prompt, group.candidates):
        return group
    answers = (candidate for candidate in group.candidates if isinstance(candidate, str))
    return replace(
        group,
        prompt=prompt_as_message(group.prompt),
        candidates=tuple((Message(role="assistant", content=text),) for text in answers),
    )


def prompt_as_message(prompt: Text) -> Text:
    """A bare prompt as a user's message; others unchanged."""
    return (Message(role="user", content=prompt),) if isinstance(prompt, str) and is_bare(prompt) else prompt


def chat_group(
    group: PreferenceGroup, tokenizer: PreTrainedTokenizerBase, rendering: Rendering
) -> tuple[PreferenceGroup, str | None]:
    """The group as `rendering.as_chat` has it read, and the event to count where it stays plain unasked."""
    if rendering.as_chat == "false" or not is_bare(group.prompt, group.candidates):
        return group, None
    if is_templated(group.prompt, tokenizer):
        return group, None
    if rendering.as_chat == "true":
        return as_messages(group), None
    return group, None if tokenizer.chat_template is None else PLAIN_TEXT


def chat_prompt(prompt: Text, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> Text:
    """The prompt as `rendering.as_chat` has it read."""
    if rendering.as_chat != "true" or is_templated(prompt, tokenizer):
        return prompt
    return prompt_as_message(prompt)


def count_plain(prompts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> int:
    """How many bare prompts a chat model reads without its template because nothing says otherwise."""
    if rendering.as_chat != "auto" or tokenizer.chat_template is None:
        return 0
    return sum(is_bare(prompt) and not is_templated(prompt, tokenizer) for prompt in prompts)


def is_templated(prompt: Text, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether plain text holds a token that the tokenizer's chat template writes around messages."""
    return isinstance(prompt, str) and any(mark in prompt for mark in _marks(tokenizer))


def _marks(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """The added tokens of a rendered exchange; a special token that the template does not write is content."""
    template = repr(tokenizer.chat_template)
    known = _MARKS.get(tokenizer)
    if known is None or known[0] != template:
        known = (template, _written(tokenizer))
        _MARKS[tokenizer] = known
    return known[1]


def _written(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    if tokenizer.chat_template is None:
        return frozenset()
    exchange = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = str(tokenizer.apply_chat_template(exchange, tokenize=False))
    except Exception:  # A template is a program: it can raise anything.
        return frozenset(added)
    return frozenset(token for token in added if token and token in text)


def require_messages(groups: Sequence[PreferenceGroup]) -> list[PreferenceGroup]:
    """Every group as messages.

    Raises:
        DataError: a plain group that has no bare prompt, as a transcript or a text without one.
    """
    written = [as_messages(group) for group in groups]
    plain = [group.id for group in written if isinstance(group.prompt, str)]
    if plain:
        raise DataError(
            f"{len(plain)} of {len(groups)} groups are plain text without a bare prompt: a transcript, a rendered "
            f"template or a text alone ({', '.join(plain[:5])})",
            fix="take these rows out, or write messages in their place",
        )
    return written
