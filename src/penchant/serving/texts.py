"""Text on its way out, a token at a time: nothing is sent that a later token could take back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penchant.data.tokenized import Ids
from penchant.evaluation.generation import silent_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What a half-read character decodes to."""

CONTEXT = 8
"""Tokens of the prompt before an answer that say how its first token is written, with a space in front or without."""


class TokenText:
    """An answer's text, token by token: together what `text_after` makes of the whole.

    A token is decoded with those just before it, not with the whole answer. Of tokenizers with a token for each byte
    (SentencePiece), bytes that make no character show as they came: read as a whole they would change earlier ones.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Ids) -> None:
        self._tokenizer, self._silent = tokenizer, silent_ids(tokenizer)
        # Only the prompt's last tokens are looked at: it may be long.
        tail = prompt[-4 * CONTEXT :].tolist()
        self._ids = [token for token in tail if token not in self._silent][-CONTEXT:]
        self._start, self._emitted = 0, len(self._ids)

    def add(self, token: int) -> str:
        """The text that this token completes; empty where it leaves a character half-read."""
        if token in self._silent:
            return ""
        self._ids.append(token)
        text = self._pending()
        if text.endswith(REPLACEMENT):
            return ""
        self._start, self._emitted = self._emitted, len(self._ids)
        return text

    def finish(self) -> str:
        """The text of a character that stays half-read."""
        text = self._pending() if self._emitted < len(self._ids) else ""
        self._start, self._emitted = self._emitted, len(self._ids)
        return text

    def preview(self, token: int) -> str:
        """The text that a token would have here, itself where it writes none."""
        if token in self._silent:
            return str(self._tokenizer.convert_ids_to_tokens(token))
        ids = self._ids[self._start :]
        return self._text_behind(ids, [token])

    def _pending(self) -> str:
        return self._text_behind(self._ids[self._start : self._emitted], self._ids[self._emitted :])

    def _text_behind(self, context: Sequence[int], tokens: Sequence[int]) -> str:
        """The tokens' text where they follow a context."""
        prefix, text = self._tokenizer.decode(context), self._tokenizer.decode([*context, *tokens])
        return text[len(prefix) :] if text.startswith(prefix) else self._tokenizer.decode(tokens)


class Outgoing:
    """One answer's text.

    Args:
        stops: sequences that end the text; they are not sent.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._sent = tuple(stops), 0

    def read(self, text: str, *, last: bool) -> tuple[str, bool]:
        """What can be sent now, and whether a stop sequence has ended the text.

        Args:
            text: all of it so far.
            last: whether no more will come.
        """
        ends = [start for start in (text.find(stop) for stop in self._stops) if start >= 0]
        if ends:
            end = min(ends)
        elif last:
            end = len(text)
        else:
            end = len(text) - max([0, *(begun_length(text, stop) for stop in self._stops)])
            end = min(end, len(text.rstrip(REPLACEMENT)))
        new = text[self._sent : end]
        self._sent = max(self._sent, end)
        return new, bool(ends)


def begun_length(text: str, stop: str) -> int:
    """Characters at the text's end that could be the stop sequence's beginning."""
    return max((n for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
