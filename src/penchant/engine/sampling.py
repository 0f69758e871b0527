"""Sampling K responses to each prompt: the prompt is read once, and all K share its keys and values.

Shapes: P prompts at a time, K samples of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from penchant.data.tokenized import Ids
from penchant.engine.decoding import plain_layers, read_prompts
from penchant.engine.device import float64_device, to_float64

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_PER_READ = 8
"""Tokens of every row between two looks at a card for rows that have ended: each look waits for the card, and rows are
computed on until the next."""


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
    with plain_layers(model):
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


@dataclass
class _Response:
    """A response while its tokens are drawn.

    Attributes:
        guide: the rule for its tokens, if there is one.
        ids: its tokens so far.
        has_ended: whether the last of them is an end token.
    """

    guide: Guide | None
    ids: list[int] = field(default_factory=list)
    has_ended: bool = False

    def allowed_tokens(self) -> Ids | None:
        """The tokens that may come next; None: any, as for a response that has ended, whose tokens are dropped."""
        return None if self.guide is None or self.has_ended else self.guide.allowed_tokens(self.ids)

    def extend(self, tokens: Sequence[int], ends: frozenset[int]) -> None:
        """Add tokens up to the first that ends the response."""
        for token in tokens:
            if self.has_ended:
                break
            self.ids.append(token)
            self.has_ended = token in ends


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
    rows = read_prompts(model, prompts)
    rows.keep([prompt for prompt in range(len(prompts)) for _ in range(draw.samples)])
    device = rows.logits.device
    # A guide needs each token before the next is drawn.
    tokens_per_read = 1 if guides is not None or draws_on_host(device) else TOKENS_PER_READ
    chances_by_step = chances.T.to(float64_device(device))
    responses = [_Response(None if guides is None else guides[row]) for row in range(len(chances))]
    alive_responses, new_tokens = responses, list[Tensor]()
    for step in range(draw.max_new_tokens):
        logits = rows.logits
        if guides is not None:
            logits = limit_logits(logits, [response.allowed_tokens() for response in alive_responses])
        tokens = choose_tokens(logits, draw.temperature, draw.top_p, chances_by_step[step])
        new_tokens.append(tokens)
        is_last = step + 1 == draw.max_new_tokens
        if is_last or len(new_tokens) == tokens_per_read:
            for response, ids in zip(alive_responses, torch.stack(new_tokens, 1).tolist(), strict=True):
                response.extend(ids, ends)
            new_tokens.clear()
            alive_indices = [index for index, response in enumerate(alive_responses) if not response.has_ended]
            if is_last or not alive_indices:
                break
            if 2 * len(alive_indices) <= len(alive_responses):
                rows.keep(alive_indices)
                tokens, chances_by_step = tokens[alive_indices], chances_by_step[:, alive_indices]
                alive_responses = [alive_responses[index] for index in alive_indices]
        rows.feed(tokens)
    return [SampledResponse(np.array(response.ids, dtype=np.int64), response.has_ended) for response in responses]


def draws_on_host(device: torch.device) -> bool:
    """Whether tokens of logits on a device are chosen by the CPU, which has nothing to wait for."""
    return float64_device(device).type == "cpu"


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
    probabilities = (to_float64(logits) / temperature).softmax(-1)
    tokens = likeliest_first(logits, probabilities)
    probabilities = probabilities.gather(-1, tokens)
    cumulated = probabilities.cumsum(-1)
    if top_p < 1:
        in_top_p = (cumulated - probabilities) < top_p
        sizes, total = in_top_p.sum(-1), torch.where(in_top_p, probabilities, 0.0).sum(-1)
    else:
        total = cumulated[:, -1]
        sizes = (total > 0) * cumulated.shape[-1]
    indices = torch.searchsorted(cumulated, (chances.to(total) * total)[:, None], right=True)[:, 0]
    return tokens.gather(-1, torch.minimum(indices, sizes - 1)[:, None])[:, 0].to(logits.device)


def likeliest_first(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Token ids [N, V] from the likeliest down.

    A card sorts the logits, which have 2 or 4 bytes where probabilities have 8: a pass over all of them less for each
    byte. Of equal ones the lower id comes first there; a CPU leaves them in an order of its own.
    """
    if draws_on_host(logits.device):
        return probabilities.sort(-1, descending=True).indices
    return logits.sort(dim=-1, descending=True, stable=True).indices
