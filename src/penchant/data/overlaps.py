"""Comparison of prompts by their turns, from messages or from a transcript."""

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
    """The text with case folded and every run of white space as one space."""
    return " ".join(text.split()).casefold()


def turns_of(prompt: Text) -> list[Turn]:
    """(role, text) of every turn; plain text is one turn of the user, unless it is a Human/Assistant transcript."""
    if not isinstance(prompt, str):
        return [(message["role"], _comparable_text(message)) for message in prompt]
    if not prompt.lstrip().startswith("Human:"):
        return [("user", prompt)]
    parts = SPEAKER.split(prompt)[1:]
    turns = [
        ("user" if speaker == "Human" else "assistant", text)
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    # A transcript ends with an empty turn of the assistant.
    return turns[:-1] if turns and not turns[-1][1].strip() else turns


def _comparable_text(message: Mapping[str, Any]) -> str:
    """A message's text; all its fields except the role as JSON where it has more than text."""
    fields = {key: value for key, value in message.items() if key != "role" and value is not None}
    content = fields.get("content")
    return content if isinstance(content, str) and len(fields) == 1 else json.dumps(fields, sort_keys=True, default=str)


def first_user_turn(prompt: Text) -> str:
    """Normalized text of the first user turn; of the whole prompt where there is no user turn."""
    turns = turns_of(prompt)
    return normalized(next((text for role, text in turns if role == "user"), " ".join(text for _, text in turns)))


def prefix_digests(prompt: Text) -> list[bytes]:
    """Digests of the prompt's first turn, its first two turns, and so on to all turns, of the normalized texts."""
    digest, digests = blake2b(digest_size=16), []
    for role, text in turns_of(prompt):
        part = f"{role}:{normalized(text)}".encode(errors="surrogatepass")
        digest.update(len(part).to_bytes(8, "little") + part)
        digests.append(digest.digest())
    return digests


def overlapping_prompts(prompts: Sequence[Sequence[bytes]], other_prompts: Sequence[Sequence[bytes]]) -> Iterator[int]:
    """Indices of the prompts that continue another prompt, or are continued by one; equal prompts do not count.

    Args:
        prompts: `prefix_digests` of each prompt.
        other_prompts: `prefix_digests` of the prompts to compare with.
    """
    complete = {digests[-1] for digests in other_prompts if digests}
    incomplete = {digest for digests in other_prompts for digest in digests[:-1]}
    for number, digests in enumerate(prompts):
        if digests and (digests[-1] in incomplete or not complete.isdisjoint(digests[:-1])):
            yield number
