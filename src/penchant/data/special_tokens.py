"""A tokenizer's special tokens: those that start a sequence, and those that end a response."""

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
        start: ids that the tokenizer puts in front of a text, most often BOS; empty where it puts none.
        bos: id of BOS, whether or not the tokenizer puts it in front; None where there is none.
        eos: id of the end-of-sequence token.
        ends: all ids that end a response: `eos`, and the ids with which the chat template ends the assistant's turns.
        turn_end: id with which the chat template ends an answer, `eos` where it writes none; None without a template
            that renders an answer.
        control: ids of `eos`, BOS, padding and the tokens that the template writes around messages. A plain text that
            contains one of them is already rendered.
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
        """The special tokens of a tokenizer.

        Raises:
            ModelError: the tokenizer has no end-of-sequence token, so no response could end.
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
        """The id to put in front of an empty prompt, so that the first response token has a token before it."""
        return self.eos if self.bos is None else self.bos

    def strip_start(self, ids: Sequence[int]) -> tuple[list[int], int]:
        """The ids without the start tokens in front, and the number of times these were there."""
        mark = list(self._start_mark)
        remaining, times = list(ids), 0
        while mark and remaining[: len(mark)] == mark:
            remaining, times = remaining[len(mark) :], times + 1
        return remaining, times

    def start_length(self, ids: Sequence[int]) -> int:
        """Number of ids in front that are start tokens."""
        return len(ids) - len(self.strip_start(ids)[0])

    @property
    def _start_mark(self) -> tuple[int, ...]:
        return self.start or (() if self.bos is None else (self.bos,))

    def with_start(self, ids: list[int], times: int) -> list[int]:
        """The ids with the start tokens in front once, where `strip_start` removed some or the tokenizer puts them."""
        return [*self._start_mark, *ids] if times or self.start else ids

    def strip_end(self, ids: Sequence[int], ends: frozenset[int]) -> tuple[list[int], int, int]:
        """The ids without end-of-turn tokens at the end, the end-of-turn id (`eos` where there was none), its count.

        White space after an end-of-turn token is written by the template between turns and removed too; white space at
        the end of plain text belongs to the text and stays. A token that the template writes after its end of turn,
        such as the conversation's `eos`, is not part of the turn.

        Args:
            ids: token ids of a sequence.
            ends: ids that count as end-of-turn tokens.
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
