"""The turns of a prompt, as messages have them or as a transcript writes them; for comparing prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from penchant.data.groups import Text

SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):", re.MULTILINE)
Turn = tuple[str, str]


def normalized(text: str) -> str:
    """The text with runs of white space as one space, and without case."""
    return " ".join(text.split()).casefold()


def turns_of(prompt: Text) -> list[Turn]:
    """(role, text) of every turn; plain text is one user's turn, unless it is a transcript of Human and Assistant."""
    if not isinstance(prompt, str):
        return [(message["role"], _comparable_text(message)) for message in prompt]
    if not prompt.lstrip().startswith("Human:"):
        return [("user", prompt)]
    parts = SPEAKER.split(prompt)[1:]
    turns = [
        ("user" if speaker == "Human" else "assistant", text)
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    # A transcript ends where the assistant is to speak.
    return turns[:-1] if turns and not turns[-1][1].strip() else turns


def _comparable_text(message: Mapping[str, Any]) -> str:
    """A message's text; all that it holds but its role, where that is more than text."""
    fields = {key: value for key, value in message.items() if key != "role" and value is not None}
    content = fields.get("content")
    return content if isinstance(content, str) and len(fields) == 1 else json.dumps(fields, sort_keys=True, default=str)


def first_user_turn(prompt: Text) -> str:
    """Text of a conversation's first user turn, without case and extra white space; the whole prompt without one."""
    turns = turns_of(prompt)
    return normalized(next((text for role, text in turns if role == "user"), " ".join(text for _, text in turns)))


def prefix_digests(prompt: Text) -> list[bytes]:
    """A digest of the prompt's first turn, of its first two, and so on to all, without case and extra white space."""
    digest, digests = blake2b(digest_size=16), []
    for role, text in turns_of(prompt):
        part = f"{role}:{normalized(text)}".encode(errors="surrogatepass")
        digest.update(len(part).to_bytes(8, "little") + part)
        digests.append(digest.digest())
    return digests


def overlapping_prompts(prompts: Sequence[Sequence[bytes]], other_prompts: Sequence[Sequence[bytes]]) -> Iterator[int]:
    """Indices of prompts that are the beginning of another one, or begin with one; equal ones are not meant.

    A prompt with its response that another prompt goes on from is among them.

    Args:
        prompts: the `beginnings` of each.
        others: the same.
    """
    complete = {digests[-1] for digests in other_prompts if digests}
    incomplete = {digest for digests in other_prompts for digest in digests[:-1]}
    for number, digests in enumerate(prompts):
        if digests and (digests[-1] in incomplete or not complete.isdisjoint(digests[:-1])):
            yield number
