"""Loss and gradient of one optimizer batch, whatever the token budget cuts it into.

A separable objective runs micro-batch by micro-batch. A coupled one (its loss depends on the whole batch's log-probs)
gets all log-probs [G, K] first, without a graph; it is differentiated with respect to them; and each micro-batch is
run again with its part of that gradient fed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from penchant.data.trees import split_into_micro_batches
from penchant.engine.device import exact, sum_device
from penchant.engine.distributed import World
from penchant.engine.scorer import CandidateGroup, Scorer
from penchant.engine.scoring import precision
from penchant.errors import ConfigError
from penchant.objectives import Groups, Objective, Output, State
from penchant.training.batches import References, group_tensors, padded_table


@dataclass
class Result:
    """Loss and metrics of one process's part of a batch.

    Attributes:
        sums: name of the loss or a metric -> (total, count) as a [2] float64 tensor.
        non_finite_ids: ids of groups whose loss is not a finite number.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    non_finite_ids: list[str] = field(default_factory=list)

    def add(self, output: Output, groups: Sequence[CandidateGroup], counts: bool) -> None:
        """Add an objective's output.

        Args:
            counts: false where another process counts the same groups; then zeros are added.
        """
        for name, value in {"loss": output.loss, **output.metrics}.items():
            pair = torch.stack([exact(value.total.detach()), exact(value.count.detach())])
            self.sums[name] = self.sums.get(name, torch.zeros_like(pair)) + (pair if counts else 0.0)
        finite = torch.isfinite(output.losses.detach())
        if counts and not finite.all():
            self.non_finite_ids += [
                group.group.id for group, fine in zip(groups, finite.tolist(), strict=True) if not fine
            ]


@dataclass(frozen=True)
class Batch:
    """One optimizer batch, the same on every process.

    Attributes:
        references: [R][groups][candidates] log-probs.
        token_budget: maximum tokens of a micro-batch.
        dtype: dtype of the matrix products.
        temperature: temperature of the softmax.
        loss_scale: factor of the loss in the backward pass, for gradients in float16.
    """

    groups: Sequence[CandidateGroup]
    references: References
    token_budget: int
    dtype: str
    temperature: float = 1.0
    loss_scale: float = 1.0

    def part(self, members: Sequence[int]) -> Batch:
        """The batch's groups at these indices."""
        references = [[table[i] for i in members] for table in self.references]
        return replace(self, groups=[self.groups[i] for i in members], references=references)


def backward(scorer: Scorer, objective: Objective, state: State, batch: Batch, world: World) -> tuple[Result, State]:
    """Add the gradient of the batch's *total* loss, scaled, to the parameters; the caller divides by the global count.

    Raises:
        ConfigError: an objective that is not coupled changes its state; a state must change once per optimizer step.
    """
    cuts = split_into_micro_batches([scorer.cost(group) for group in batch.groups], batch.token_budget)
    if objective.coupled and (len(cuts) > 1 or world.size > 1):
        return _coupled(scorer, objective, state, batch, world, cuts)
    result = Result()
    for members, counts_here in world.share(cuts):
        part = batch.part(members)
        log_probs = _score_micro_batch(scorer, part, world)
        policy, reference, facts = objective_inputs(log_probs, part.groups, part.references)
        output, new_state = objective(policy, reference, facts, state)
        if not objective.coupled and _differ(state, new_state):
            raise ConfigError(
                f"objective {objective.name} changes its state, and its `coupled` is False: the state would change "
                "once for each micro-batch, so the token budget would decide how often",
                fix="set its `coupled` to True: it then gets every optimizer batch at once",
            )
        state = new_state
        (output.loss.total * (float(counts_here) * batch.loss_scale)).backward()
        result.add(output, part.groups, counts_here)
    return result, state


def _differ(state: State, new_state: State) -> bool:
    if new_state is state:
        return False
    return state.keys() != new_state.keys() or any(not torch.equal(state[name], new_state[name]) for name in state)


def _coupled(
    scorer: Scorer, objective: Objective, state: State, batch: Batch, world: World, cuts: Sequence[Sequence[int]]
) -> tuple[Result, State]:
    # Adapters' dropout must be the same in both passes: each micro-batch has a seed of its own.
    seed = torch.initial_seed() % 2**62
    scores_of_batch = score_batch(scorer, batch, world, cuts, seed).requires_grad_()
    policy, reference, facts = objective_inputs(scores_of_batch, batch.groups, batch.references)
    output, state = objective(policy, reference, facts, state)
    (gradient,) = torch.autograd.grad(output.loss.total, scores_of_batch)
    for members, counts_here in world.share(cuts):
        torch.manual_seed(seed + members[0])
        scores = _score_micro_batch(scorer, batch.part(members), world)
        scores.backward(gradient[..., list(members), : scores.shape[-1]] * (float(counts_here) * batch.loss_scale))
    result = Result()
    result.add(output, batch.groups, counts=world.is_main)
    return result, state


@torch.no_grad()
def score_batch(
    scorer: Scorer,
    batch: Batch,
    world: World,
    cuts: Sequence[Sequence[int]],
    seed: int = 0,
    advance: Callable[[int], None] = lambda groups: None,
) -> Tensor:
    """The model's scores of every candidate of a batch, without a graph: [G, K], or [2, G, K] with a head.

    Args:
        cuts: indices of the groups of each micro-batch.
        seed: seed of the adapters' dropout, where the scorer is in training mode.
        advance: called with the number of groups done since the last call.
    """
    rows_by_index: dict[int, Tensor] = {}
    for members, _ in world.share(cuts):
        torch.manual_seed(seed + members[0])
        scores = _score_micro_batch(scorer, batch.part(members), world).cpu()
        rows_by_index.update(zip(members, scores.unbind(-2), strict=True))
        advance(len(members) * world.size)
    for rank_rows in world.gather(rows_by_index):
        rows_by_index.update(rank_rows)
    widest = max(row.shape[-1] for row in rows_by_index.values())
    rows = [pad(rows_by_index[i], (0, widest - rows_by_index[i].shape[-1])) for i in range(len(batch.groups))]
    return torch.stack(rows, -2).to(sum_device(world.device))


def objective_inputs(
    scores: Tensor, groups: Sequence[CandidateGroup], references: References
) -> tuple[Tensor, Tensor, Groups]:
    """The inputs of an objective besides its state.

    Args:
        scores: [G, K] log-probs of these groups' candidates; with a preference head [2, G, K]: log-probs and the
            head's rewards.
        references: [R][groups][candidates].

    Returns:
        policy [G, K], reference [R, G, K], and the candidates' masks, preferences, scores and labels.
    """
    policy, rewards = (scores[0], scores[1]) if scores.ndim == 3 else (scores, None)
    tables = [padded_table(table, policy.shape[1]) for table in references]
    reference = torch.stack(tables) if tables else policy.new_zeros(0, *policy.shape)
    lengths = [group.tokens for group in groups]
    tensors = group_tensors([group.group for group in groups], lengths)
    facts = replace(tensors.to(policy.device), rewards=rewards)
    return policy, reference.to(policy.device), facts


def _score_micro_batch(scorer: Scorer, batch: Batch, world: World) -> Tensor:
    with precision(world.device, batch.dtype):
        scores: Tensor = scorer(scorer.collate(batch.groups, batch.temperature).to(world.device))
    return scores
