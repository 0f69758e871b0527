"""Sampling K responses to each prompt: the prompt is read once, and all K share its keys and values.

Shapes: P prompts at a time, K samples of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from penchant.data.tokenized import Ids
from penchant.engine.decoding import own_attention, read_prompts
from penchant.engine.device import exact

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Attributes:
        samples: responses for each prompt.
        max_new_tokens: tokens of the longest response.
        temperature: temperature of the softmax; 0 takes the likeliest token each time.
        top_p: probability of the smallest set of likeliest tokens to draw from; 1 draws from all.
        seed: with a prompt's number it decides the draws, whatever else is in the batch.
        batch_size: prompts computed at a time.
    """

    samples: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32


@dataclass(frozen=True)
class SampledResponse:
    """One sampled response.

    Attributes:
        ids: its tokens, the end token included where it came.
        has_end: whether the end token came within `max_new_tokens`.
    """

    ids: Ids
    has_end: bool

    @property
    def content(self) -> list[int]:
        """The response's tokens without the end token."""
        return self.ids[: len(self.ids) - self.has_end].tolist()


class Guide(Protocol):
    """A rule for the next token of one response, as a grammar has."""

    def allowed_tokens(self, response: Sequence[int]) -> Ids:
        """Ids, at least one, that may follow the tokens of a response so far; each call has one token more."""


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    draw: Sampling,
    *,
    ends: Sequence[int],
    guides: Sequence[Callable[[], Guide]] | None = None,
    numbers: Sequence[int] | None = None,
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[list[SampledResponse]]:
    """`draw.samples` responses to each prompt.

    Args:
        model: any causal language model, also one that a scorer has changed; its training mode is restored.
        prompts: ids as training sees them.
        ends: ids that end a response.
        guides: for each prompt a function that makes the `Guide` of one response; called once per response.
        numbers: each prompt's number, which with the seed decides its draws; by default its index.
        advance: called with the number of prompts done since the last call.
    """
    training = model.training
    model.eval()
    numbers = range(len(prompts)) if numbers is None else numbers
    responses: list[list[SampledResponse]] = []
    with own_attention(model):
        for start in range(0, len(prompts), draw.batch_size):
            part = prompts[start : start + draw.batch_size]
            # Each prompt's numbers are its own: what else is in the batch does not change them.
            size = (draw.samples, draw.max_new_tokens)
            own_numbers = numbers[start : start + draw.batch_size]
            chances = [np.random.default_rng((draw.seed, number)).random(size) for number in own_numbers]
            part_guides = None
            if guides is not None:
                part_guides = [guides[start + i]() for i in range(len(part)) for _ in range(draw.samples)]
            rows = _respond(model, part, draw, torch.from_numpy(np.concatenate(chances)), frozenset(ends), part_guides)
            responses += [rows[i * draw.samples : (i + 1) * draw.samples] for i in range(len(part))]
            advance(len(part))
    model.train(training)
    return responses


def _respond(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    draw: Sampling,
    chances: Tensor,
    ends: frozenset[int],
    guides: Sequence[Guide] | None,
) -> list[SampledResponse]:
    """P x K responses; ended rows are removed once half of the rows have ended.

    Args:
        chances: [P K, max_new_tokens] uniform numbers, one for each token.
    """
    state = read_prompts(model, prompts)
    state.keep([prompt for prompt in range(len(prompts)) for _ in range(draw.samples)])
    responses: list[list[int]] = [[] for _ in range(len(chances))]
    has_ended = [False] * len(chances)
    alive_rows = list(range(len(chances)))
    for step in range(draw.max_new_tokens):
        logits = state.logits
        if guides is not None:
            # A row that has ended is drawn for like the others until it is taken out, and what is drawn is dropped.
            allowed_tokens = [
                None if has_ended[row] else guides[row].allowed_tokens(responses[row]) for row in alive_rows
            ]
            logits = limit_logits(logits, allowed_tokens)
        tokens = choose_tokens(logits, draw.temperature, draw.top_p, chances[alive_rows, step]).tolist()
        for row, token in zip(alive_rows, tokens, strict=True):
            if not has_ended[row]:
                responses[row].append(token)
                has_ended[row] = token in ends
        alive_indices = [index for index, row in enumerate(alive_rows) if not has_ended[row]]
        if not alive_indices or step + 1 == draw.max_new_tokens:
            break
        if 2 * len(alive_indices) <= len(alive_rows):
            state.keep(alive_indices)
            alive_rows, tokens = (
                [alive_rows[index] for index in alive_indices],
                [tokens[index] for index in alive_indices],
            )
        state.feed(tokens)
    return [
        SampledResponse(np.array(ids, dtype=np.int64), row_ended)
        for ids, row_ended in zip(responses, has_ended, strict=True)
    ]


def limit_logits(logits: Tensor, allowed_tokens: Sequence[Ids | None]) -> Tensor:
    """Logits [N, V] with -inf for all but the allowed tokens; rows with None stay as they are."""
    limited = logits.clone()
    for row, ids in enumerate(allowed_tokens):
        if ids is not None:
            index = torch.from_numpy(ids).to(logits.device)
            limited[row] = -torch.inf
            limited[row, index] = logits[row, index]
    return limited


def choose_tokens(logits: Tensor, temperature: float, top_p: float, chances: Tensor) -> Tensor:
    """Tokens [N] drawn from logits [N, V] by uniform numbers [N]: those whose share of the probability they fall in.

    The tokens are laid out from the likeliest down; with `top_p` below 1 the layout ends where it is reached. A
    temperature below 1e-6 counts as 0: divided by less, logits may overflow, and the likeliest token has all anyway.
    """
    if temperature < 1e-6:
        return logits.argmax(-1)
    probabilities, tokens = (exact(logits) / temperature).softmax(-1).sort(-1, descending=True)
    cumulated = probabilities.cumsum(-1)
    if top_p < 1:
        in_top_p = (cumulated - probabilities) < top_p
        cumulated = torch.where(in_top_p, cumulated, torch.inf)
        total = torch.where(in_top_p, probabilities, 0.0).sum(-1)
    else:
        total = cumulated[:, -1]
    places = torch.searchsorted(cumulated, (chances.to(total) * total)[:, None], right=True)[:, 0]
    last = torch.isfinite(cumulated).sum(-1) - 1
    return tokens.gather(-1, torch.minimum(places, last)[:, None])[:, 0].to(logits.device)
