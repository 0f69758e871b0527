"""Loss and gradient of one optimizer batch, whatever the token budget cuts it into.

A separable objective runs micro-batch by micro-batch. A coupled one (its loss depends on the whole batch's log-probs)
gets all log-probs [G, K] first, without a graph; it is differentiated with respect to them; and each micro-batch is
run again with its part of that gradient fed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import cut, pack
from penchant.engine.distribution import World
from penchant.engine.scoring import Scorer, precision
from penchant.objectives import Objective, Output, State
from penchant.training.batches import group_facts, padded_table

References = Sequence[Sequence[Sequence[float]]]
"""[R][groups][candidates] log-probs, nats."""


@dataclass
class Result:
    """What one process found in its part of a batch.

    Attributes:
        sums: the loss and each metric: (total, count) as a [2] float64 tensor.
        broken: ids of the groups whose loss is not a finite number.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def add(self, output: Output, groups: Sequence[TokenizedGroup], counts: bool) -> None:
        """Add an objective's output; it counts nothing where another process counts the same groups."""
        for name, value in {"loss": output.loss, **output.metrics}.items():
            pair = torch.stack([value.total.detach().double(), value.count.detach().double()])
            self.sums[name] = self.sums.get(name, torch.zeros_like(pair)) + (pair if counts else 0.0)
        finite = torch.isfinite(output.losses.detach())
        if counts and not finite.all():
            self.broken += [group.group.id for group, fine in zip(groups, finite.tolist(), strict=True) if not fine]


@dataclass(frozen=True)
class Batch:
    """One optimizer batch, the same on every process.

    Attributes:
        references: [R][groups][candidates] log-probs.
        token_budget: tokens in a micro-batch.
        dtype: of the matrix products.
    """

    groups: Sequence[TokenizedGroup]
    references: References
    token_budget: int
    dtype: str

    def part(self, members: Sequence[int]) -> Batch:
        """The batch's groups at these indices."""
        references = [[table[i] for i in members] for table in self.references]
        return replace(self, groups=[self.groups[i] for i in members], references=references)


def backward(scorer: Scorer, objective: Objective, state: State, batch: Batch, world: World) -> tuple[Result, State]:
    """Add the gradient of the batch's *total* loss to the parameters; the caller divides by the global count."""
    cuts = cut([scorer.cost(group) for group in batch.groups], batch.token_budget)
    if objective.coupled and (len(cuts) > 1 or world.size > 1):
        return _coupled(scorer, objective, state, batch, world, cuts)
    result = Result()
    for members, own in world.share(cuts):
        part = batch.part(members)
        output, state = apply_objective(objective, _log_probs(scorer, part, world), part.groups, part.references, state)
        (output.loss.total * float(own)).backward()
        result.add(output, part.groups, own)
    return result, state


def _coupled(
    scorer: Scorer, objective: Objective, state: State, batch: Batch, world: World, cuts: Sequence[Sequence[int]]
) -> tuple[Result, State]:
    found: dict[int, list[float]] = {}
    for members, _ in world.share(cuts):
        with torch.no_grad():
            rows = _log_probs(scorer, batch.part(members), world).tolist()
        found.update(zip(members, rows, strict=True))
    for others in world.gather(found):
        found.update(others)
    policy = padded_table([found[i] for i in range(len(batch.groups))], max(map(len, found.values())))
    policy = policy.to(world.device).requires_grad_()
    output, state = apply_objective(objective, policy, batch.groups, batch.references, state)
    (gradient,) = torch.autograd.grad(output.loss.total, policy)
    for members, own in world.share(cuts):
        log_probs = _log_probs(scorer, batch.part(members), world)
        log_probs.backward(gradient[list(members), : log_probs.shape[1]] * float(own))
    result = Result()
    result.add(output, batch.groups, counts=world.is_main)
    return result, state


def apply_objective(
    objective: Objective, policy: Tensor, groups: Sequence[TokenizedGroup], references: References, state: State
) -> tuple[Output, State]:
    """The objective on log-probs [G, K] of these groups, with what is known of them."""
    tables = [padded_table(table, policy.shape[1]) for table in references]
    reference = torch.stack(tables) if tables else policy.new_zeros(0, *policy.shape)
    return objective(policy, reference.to(policy.device), group_facts(groups).to(policy.device), state)


def _log_probs(scorer: Scorer, batch: Batch, world: World) -> Tensor:
    with precision(world.device, batch.dtype):
        log_probs: Tensor = scorer(pack(batch.groups).to(world.device))
    return log_probs
