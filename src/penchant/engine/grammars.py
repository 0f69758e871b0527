"""Responses constrained to a grammar.

Grammars are written in llguidance's dialect of Lark
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md): over characters, whatever the tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from penchant.data.tokenized import Ids
from penchant.errors import ModelError, require_extra

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def grammar_library() -> ModuleType:
    """The package `llguidance`, imported when it is needed.

    Raises:
        ConfigError: it is missing.
    """
    with require_extra("constrained", "constrained answers need llguidance"):
        import llguidance.hf
    return llguidance


class Grammars:
    """Grammars over one tokenizer's tokens.

    Args:
        ends: ids that end a response; they are allowed where the grammar's text is complete, and nowhere else.

    Raises:
        ConfigError: the package `llguidance` is missing.
        ModelError: the texts of the tokenizer's tokens do not join into the text they came from.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> None:
        self._library = grammar_library()
        try:
            self._tokens = self._library.hf.from_tokenizer(tokenizer, eos_token=list(ends))
        except ValueError as error:
            raise ModelError(
                f"answers of this tokenizer cannot be constrained: {error}", fix="leave the constraint out"
            ) from error

    def guide(self, grammar: str) -> GrammarGuide:
        """A guide for one response.

        Raises:
            ValueError: the grammar is invalid.
        """
        matcher = self._library.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return GrammarGuide(matcher)


class GrammarGuide:
    """A `Guide` that constrains one response to a grammar."""

    def __init__(self, matcher: Any, consumed: int = 0) -> None:
        self._matcher, self._consumed = matcher, consumed

    def allowed_tokens(self, response: Sequence[int]) -> Ids:
        """Ids of the tokens after which the response can still become a text of the grammar.

        Raises:
            ModelError: no token is allowed, as the tokenizer lacks a character; or the grammar is too large.
        """
        self._matcher.consume_tokens(list(response[self._consumed :]))
        self._consumed = len(response)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        tokens = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        if self._matcher.is_error() or not len(tokens):
            reason = self._matcher.get_error().partition("\n")[0] or "no token of the tokenizer may come next"
            raise ModelError(f"an answer cannot be constrained: {reason}", fix="leave the constraint out")
        return tokens

    def copy(self) -> GrammarGuide:
        """A copy of this guide in its present state; much cheaper than a new guide of the same grammar."""
        return GrammarGuide(self._matcher.deep_copy(), self._consumed)
