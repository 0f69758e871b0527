"""What a tokenizer's special tokens mean to a sequence: where it starts, and what ends a response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from penchant.data.template_tokens import TemplateTokens
from penchant.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SpecialTokens:
    """A tokenizer's special tokens.

    Attributes:
        start: ids the tokenizer itself puts in front of a text, most often BOS; empty where it puts none.
        bos: the BOS id, whether or not the tokenizer puts it in front.
        eos: the end-of-sequence id.
        ends: ids that end a response: `eos`, and what the chat template ends the assistant's turns with; no other.
        turn_end: what the chat template ends an answer with, else `eos`; None without a template that renders one.
        control: `eos`, BOS, padding and what the template writes around messages; in a plain text they show that it was
            already applied.
        is_blank: whether an id decodes to white space only.
    """

    start: tuple[int, ...]
    bos: int | None
    eos: int
    ends: frozenset[int]
    turn_end: int | None
    control: frozenset[int]
    is_blank: Callable[[int], bool]

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
        """Read them off a tokenizer.

        Raises:
            ModelError: it has no end-of-sequence token, so no response could end.
        """
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no end-of-sequence token, so no response could end",
                where=tokenizer.name_or_path or None,
                fix='set "eos_token" in its tokenizer_config.json',
            )
        template = TemplateTokens.from_tokenizer(tokenizer)
        eos = tokenizer.eos_token_id

        @cache
        def is_blank(token: int) -> bool:
            return not tokenizer.decode([token]).strip()

        return cls(
            start=_start_ids(tokenizer),
            bos=tokenizer.bos_token_id,
            eos=eos,
            ends=template.ends | {eos},
            turn_end=(eos if template.turn_end is None else template.turn_end) if template.renders else None,
            control=frozenset(tokenizer.convert_tokens_to_ids(list(template.control))),
            is_blank=is_blank,
        )

    @property
    def fallback_start(self) -> int:
        """The id to start with where the first response token would have nothing before it."""
        return self.eos if self.bos is None else self.bos

    def strip_start(self, ids: Sequence[int]) -> tuple[list[int], int]:
        """The ids without the start tokens in front, and how many times they stood there."""
        mark = list(self._start_mark)
        remaining, times = list(ids), 0
        while mark and remaining[: len(mark)] == mark:
            remaining, times = remaining[len(mark) :], times + 1
        return remaining, times

    def start_length(self, ids: Sequence[int]) -> int:
        """How many ids in front are start tokens."""
        return len(ids) - len(self.strip_start(ids)[0])

    @property
    def _start_mark(self) -> tuple[int, ...]:
        return self.start or (() if self.bos is None else (self.bos,))

    def with_start(self, ids: list[int], times: int) -> list[int]:
        """The ids of `strip_start` with the start tokens in front once, where they stood or the tokenizer puts them."""
        return [*self._start_mark, *ids] if times or self.start else ids

    def strip_end(self, ids: Sequence[int], ends: frozenset[int]) -> tuple[list[int], int, int]:
        """The ids without what ends them, the end-of-turn id found (else `eos`), and how many times it stood there.

        White space behind an end-of-turn token is what a template puts between turns; white space that ends plain text
        is the author's and stays. What a template writes behind its own end of turn, as `eos` of the conversation, is
        no part of the turn.
        """
        size, end, times = len(ids), self.eos, 0
        while True:
            last = size
            while last and self.is_blank(ids[last - 1]) and ids[last - 1] not in ends:
                last -= 1
            if not last or ids[last - 1] not in ends:
                return list(ids[:size]), end, times
            last_id = ids[last - 1]
            if times and last_id not in (end, self.turn_end):
                return list(ids[:size]), end, times
            size, times = last - 1, times + 1 if last_id == end else 1
            end = last_id


def _start_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    plain_ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    full_ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    for prefix_length in range(len(full_ids) - len(plain_ids) + 1):
        if plain_ids and full_ids[prefix_length : prefix_length + len(plain_ids)] == plain_ids:
            return tuple(full_ids[:prefix_length])
    return tuple(full_ids[:1]) if full_ids[:1] == [tokenizer.bos_token_id] else ()
