"""The work of a run: its steps, their micro-batches, the heaviest of them, and the largest token budget that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from penchant.config.run import RunConfig
from penchant.config.run_sections import SAFE_TOKEN_BUDGET
from penchant.data.second_reading import add_mismatched
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import split_into_micro_batches
from penchant.engine.scoring import PACKING_WINDOW
from penchant.planning.memory import MicroBatch, PeakBatches
from penchant.training.batches import Order
from penchant.training.inputs import Inputs

STEPS = 512
"""Maximum number of examined steps; of a longer run they are evenly spaced."""

Cost = Callable[[TokenizedGroup], int]


@dataclass(frozen=True)
class Workload:
    """A run's work under one token budget.

    Attributes:
        train, held_out: groups as the policy reads them; candidates to be sampled have their maximum length.
        order: order of the training groups.
        cost: function that returns the tokens of a group in a micro-batch.
        reference_held_out: groups that only references read.
    """

    config: RunConfig
    train: Sequence[TokenizedGroup]
    held_out: Sequence[TokenizedGroup]
    order: Order
    cost: Cost
    reference_held_out: Sequence[TokenizedGroup] = ()

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        settings = self.config.training
        return settings.max_steps or max(1, round(settings.epochs * self.order.steps_per_epoch))

    @cached_property
    def sampled_steps(self) -> list[list[MicroBatch]]:
        """Micro-batches of the examined steps."""
        chosen = np.unique(np.linspace(0, self.steps - 1, min(self.steps, STEPS)).astype(int)).tolist()
        return [self._split([self.train[i] for i in self.order.batch(step)]) for step in chosen]

    @property
    def references(self) -> list[str | None]:
        """References whose log-probs are computed before training; empty where candidates are sampled during it."""
        return [] if self.config.candidates == "sampled" else self.config.reference_sources

    @property
    def tokens(self) -> float:
        """Mean number of tokens of a step."""
        return sum(self.step_tokens) / len(self.step_tokens)

    @property
    def step_tokens(self) -> list[int]:
        """Number of tokens of each examined step."""
        return [sum(map(self._tokens, step)) for step in self.sampled_steps]

    @property
    def micro_batches(self) -> float:
        """Mean number of micro-batches of a step."""
        return sum(map(len, self.sampled_steps)) / len(self.sampled_steps)

    @property
    def typical(self) -> MicroBatch:
        """The micro-batch that holds the median token of the examined steps."""
        micro_batches = sorted((groups for step in self.sampled_steps for groups in step), key=self._tokens)
        sums = np.cumsum([self._tokens(groups) for groups in micro_batches])
        return micro_batches[int(np.searchsorted(sums, sums[-1] / 2))]

    def reading(self) -> dict[str, float]:
        """Tokens of passes without gradients, by phase: of references before training, and of held-out evaluations.

        A reference that is updated reads every step after the first evaluation, and the held-out part after every
        evaluation, as if each were the best so far.
        """
        cost_of_all = sum(map(self.cost, [*self.train, *self.held_out, *self.reference_held_out]))
        held_out = sum(map(self.cost, self.held_out))
        interval = self.config.evaluation.every
        evaluations = (self.steps - 1) // interval if interval else 0
        moves = self.config.reference_update == "best" and interval is not None
        times = 2 + evaluations * (1 + moves) + moves
        coupled = self.config.built_objective.coupled and self.micro_batches > 1
        live = self.config.candidates == "sampled" and bool(self.config.built_objective.needs.references)
        return {
            "reference_pass": float(cost_of_all * len(self.references)),
            "held_out": float(held_out * times),
            "training": self.tokens * (self.steps * (coupled + live) + max(0, self.steps - (interval or 0)) * moves),
        }

    def peak_batches(self) -> PeakBatches:
        """The steps and micro-batches that decide the peak of memory."""
        longest = max(self.sampled_steps, key=lambda step: max(map(_token_count, step)))
        most_targets = max(self.sampled_steps, key=lambda step: max(map(_target_count, step)))
        steps = [longest] if longest is most_targets else [longest, most_targets]
        groups = [*self.train, *self.held_out, *self.reference_held_out] if self.references else []
        return PeakBatches(
            [_two_heaviest(step) for step in steps],
            _two_heaviest(self._windows(groups)),
            _two_heaviest(self._windows(self.held_out)),
        )

    def _windows(self, groups: Sequence[TokenizedGroup]) -> list[MicroBatch]:
        return [
            part
            for start in range(0, len(groups), PACKING_WINDOW)
            for part in self._split(groups[start : start + PACKING_WINDOW])
        ]

    def _split(self, groups: Sequence[TokenizedGroup]) -> list[MicroBatch]:
        budget = self.config.training.resolved_token_budget
        cuts = split_into_micro_batches([self.cost(group) for group in groups], budget)
        return [[groups[i] for i in members] for members in cuts]

    def _tokens(self, groups: MicroBatch) -> int:
        return sum(map(self.cost, groups))


def plan_batches(config: RunConfig, inputs: Inputs, limit: int, cost: Cost) -> Workload:
    """The workload of a run.

    Args:
        limit: maximum tokens of the model.
        cost: function that returns the tokens of a group in a micro-batch.
    """
    settings = config.training
    train, held_out = list(inputs.train), list(inputs.held_out)
    longest = config.data.max_length or limit
    if config.candidates == "sampled":
        by_prompt = {group.prompt.tobytes(): group for group in train}
        train = [
            _with_longest_candidates(group, config.sampling.samples, config.sampling.max_new_tokens)
            for group in by_prompt.values()
        ]
    elif config.built_objective.needs.mismatched:
        both_sets = add_mismatched([*train, *held_out], settings.seed, longest)
        train, held_out = both_sets[: len(train)], both_sets[len(train) :]
    order = Order(len(train), settings.batch_size, settings.seed, settings.shuffle)
    return Workload(config, train, held_out, order, cost, inputs.reference_held_out)


def _with_longest_candidates(group: TokenizedGroup, samples: int, tokens: int) -> TokenizedGroup:
    """A prompt with as many candidates as will be sampled, all of maximum length."""
    return TokenizedGroup(group.prompt, (np.zeros(tokens, np.int64),) * samples, group.group)


def _token_count(groups: MicroBatch) -> int:
    return sum(group.length for group in groups)


def _target_count(groups: MicroBatch) -> int:
    return sum(sum(group.tokens) for group in groups)


def _two_heaviest(micro_batches: Sequence[MicroBatch]) -> list[MicroBatch]:
    """The two heaviest micro-batches: gradients exist in the second one, as at the peak."""
    return sorted(micro_batches, key=_token_count, reverse=True)[:2]


CARD_SHARE = 0.85
"""Share of a card's free memory that the planned peak may take: the allocator's blocks take some of the rest."""

STEP = 512
"""Budgets below a whole step are multiples of it, so that a little more or less free memory mostly changes nothing."""

GROWTH = 8
"""Factor between two plans while all have fitted."""

CLOSE = 0.97
"""Share of the room that a planned peak must fill to be taken at once."""

MAX_PLANS = 6
"""Maximum number of plans for one budget."""


def largest_budget(peak_of: Callable[[int], int], smallest: int, step_tokens: int, room: int) -> int | None:
    """The largest budget found whose peak fits into the room; None where not even the smallest does.

    Args:
        peak_of: returns the peak of memory in bytes with a budget; it grows with the budget.
        smallest: tokens of the longest group, which is never split.
        step_tokens: tokens of a step, which a larger budget would not change.
        room: bytes.
    """
    peak = cache(peak_of)
    step_tokens = max(step_tokens, smallest)
    low = min(max(smallest, SAFE_TOKEN_BUDGET), step_tokens)
    high = None if peak(low) <= room else low
    if high is not None:
        low = smallest
        if peak(low) > room:
            return None
    while low < step_tokens and peak.cache_info().misses < MAX_PLANS and peak(low) < CLOSE * room:
        guess = min(step_tokens, GROWTH * low)
        if high is not None:
            share = (room - peak(low)) / (peak(high) - peak(low))
            guess = int(low + share * (high - low)) // STEP * STEP
        if not low < guess < (high or guess + 1):
            break
        low, high = (guess, high) if peak(guess) <= room else (low, guess)
    return low
