"""Text of a streamed answer, token by token: no text is sent that a later token could change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penchant.data.tokenized import Ids
from penchant.evaluation.answering import silent_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""The character to which an incomplete character decodes."""

CONTEXT = 8
"""Number of the prompt's last tokens that are decoded with an answer: whether it begins with a space depends on them.
"""


class TokenText:
    """The text of an answer, token by token; together the texts equal `text_after` of the whole answer.

    A token is decoded with the tokens just before it, not with the whole answer. For tokenizers with a token for each
    byte (SentencePiece), bytes that form no character are shown one by one; decoded together they would change the text
    of earlier ones.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Ids) -> None:
        self._tokenizer, self._silent = tokenizer, silent_ids(tokenizer)
        # Only the last tokens of the prompt are decoded, because it may be long.
        tail = prompt[-4 * CONTEXT :].tolist()
        self._ids = [token for token in tail if token not in self._silent][-CONTEXT:]
        self._start, self._emitted = 0, len(self._ids)

    def add(self, token: int) -> str:
        """The text that this token completes; empty where a character is still incomplete."""
        if token in self._silent:
            return ""
        self._ids.append(token)
        text = self._pending()
        if text.endswith(REPLACEMENT):
            return ""
        self._start, self._emitted = self._emitted, len(self._ids)
        return text

    def finish(self) -> str:
        """The text of the last, incomplete character at the end of the answer."""
        text = self._pending() if self._emitted < len(self._ids) else ""
        self._start, self._emitted = self._emitted, len(self._ids)
        return text

    def preview(self, token: int) -> str:
        """The text that a token would add here; its name where it adds none."""
        if token in self._silent:
            return str(self._tokenizer.convert_ids_to_tokens(token))
        ids = self._ids[self._start :]
        return self._text_behind(ids, [token])

    def _pending(self) -> str:
        return self._text_behind(self._ids[self._start : self._emitted], self._ids[self._emitted :])

    def _text_behind(self, context: Sequence[int], tokens: Sequence[int]) -> str:
        """The text of tokens that follow a context."""
        prefix, text = self._tokenizer.decode(context), self._tokenizer.decode([*context, *tokens])
        return text[len(prefix) :] if text.startswith(prefix) else self._tokenizer.decode(tokens)


class StopFilter:
    """Holds back the text of an answer that may be a part of a stop sequence.

    Args:
        stops: sequences that end the text; they are not sent.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._sent_length = tuple(stops), 0

    def read(self, text: str, *, last: bool) -> tuple[str, bool]:
        """The new text to send, and whether a stop sequence has ended the text.

        Args:
            text: the whole text so far.
            last: whether the text is complete.
        """
        ends = [start for start in (text.find(stop) for stop in self._stops) if start >= 0]
        if ends:
            end = min(ends)
        elif last:
            end = len(text)
        else:
            end = len(text) - max([0, *(partial_match_length(text, stop) for stop in self._stops)])
            end = min(end, len(text.rstrip(REPLACEMENT)))
        new = text[self._sent_length : end]
        self._sent_length = max(self._sent_length, end)
        return new, bool(ends)


def partial_match_length(text: str, stop: str) -> int:
    """Number of characters at the end of a text that may be the beginning of a stop sequence."""
    return max((n for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
