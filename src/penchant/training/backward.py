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

from penchant.data.trees import copy_together, split_into_micro_batches
from penchant.engine.device import float64_device, to_float64
from penchant.engine.distributed import World
from penchant.engine.scoring import CandidateGroup, Scorer, precision
from penchant.engine.working_weights import WorkingWeights
from penchant.errors import ConfigError
from penchant.objectives import Groups, Objective, Output, State
from penchant.training.batches import References, group_tensors, padded_table


@dataclass
class Result:
    """Loss and metrics of one process's part of a batch, on the device where they were computed.

    Attributes:
        sums: name of the loss or a metric -> (total, count) as a [2] float64 tensor.
        finite: for each output whether its groups' losses are finite numbers, [G] bool, and the groups' ids.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    finite: list[tuple[Tensor, list[str]]] = field(default_factory=list)

    def add(self, output: Output, groups: Sequence[CandidateGroup], counts: bool) -> None:
        """Add an objective's output.

        Args:
            counts: false where another process counts the same groups; then zeros are added.
        """
        values = {"loss": output.loss, **output.metrics}
        table = torch.stack([to_float64(x.detach()) for value in values.values() for x in (value.total, value.count)])
        table = table if counts else torch.zeros_like(table)
        for name, pair in zip(values, table.view(-1, 2), strict=True):
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair
        if counts:
            self.finite.append((torch.isfinite(output.losses.detach()), [group.group.id for group in groups]))

    @property
    def non_finite_ids(self) -> list[str]:
        """Ids of the groups whose loss is not a finite number; read from the device."""
        return [
            group_id
            for finite, ids in self.finite
            for group_id, fine in zip(ids, finite.tolist(), strict=True)
            if not fine
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


def backward(
    scorer: Scorer, objective: Objective, state: State, batch: Batch, world: World, weights: WorkingWeights
) -> tuple[Result, State]:
    """Add the gradient of the batch's *total* loss, scaled, to the parameters; the caller divides by the global count.

    Args:
        weights: copies of the scorer's weights, which its layers hold meanwhile.

    Raises:
        ConfigError: an objective that is not coupled changes its state; a state must change once per optimizer step.
    """
    cuts = split_into_micro_batches([scorer.cost(group) for group in batch.groups], batch.token_budget)
    with weights.in_place():
        if objective.coupled:
            return _coupled(scorer, objective, state, batch, world, weights, cuts)
        result = Result()
        for members, counts_here in world.share(cuts):
            part = batch.part(members)
            # Sent before the forward: what is sent between it and the backward waits for the forward on a card.
            reference, facts = objective_tables(part.groups, part.references, float64_device(world.device))
            policy, facts = with_scores(_score_micro_batch(scorer, part, world), facts)
            output, new_state = objective(policy, reference, facts, state)
            if _differ(state, new_state):
                raise ConfigError(
                    f"objective {objective.name} changes its state, and its `coupled` is False: the state would change "
                    "once for each micro-batch, so the token budget would decide how often",
                    fix="set its `coupled` to True: it then gets every optimizer batch at once",
                )
            state = new_state
            (output.loss.total * (float(counts_here) * batch.loss_scale)).backward()
            weights.add_gradients()
            result.add(output, part.groups, counts_here)
        return result, state


def _differ(state: State, new_state: State) -> bool:
    if new_state is state:
        return False
    return state.keys() != new_state.keys() or any(not torch.equal(state[name], new_state[name]) for name in state)


def _coupled(
    scorer: Scorer,
    objective: Objective,
    state: State,
    batch: Batch,
    world: World,
    weights: WorkingWeights,
    cuts: Sequence[Sequence[int]],
) -> tuple[Result, State]:
    """The gradient by way of the scores: the objective of [G, K] numbers is computed on the host."""
    # Adapters' dropout must be the same in both passes: each micro-batch has a seed of its own.
    seed = torch.initial_seed() % 2**62
    is_whole = len(cuts) == 1 and world.size == 1
    scores = _score_micro_batch(scorer, batch, world) if is_whole else score_batch(scorer, batch, world, cuts, seed)
    scores_of_batch = scores.detach().cpu().requires_grad_()
    policy, reference, facts = objective_inputs(scores_of_batch, batch.groups, batch.references)
    output, state = objective(policy, reference, facts, state)
    (gradient,) = torch.autograd.grad(output.loss.total, scores_of_batch)
    (gradient,) = copy_together([gradient], float64_device(world.device))
    if is_whole:
        scores.backward(gradient * batch.loss_scale)
        weights.add_gradients()
    else:
        for members, counts_here in world.share(cuts):
            torch.manual_seed(seed + members[0])
            scores = _score_micro_batch(scorer, batch.part(members), world)
            part = gradient[..., list(members), : scores.shape[-1]]
            scores.backward(part * (float(counts_here) * batch.loss_scale))
            weights.add_gradients()
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

    They are on the host where several processes share the batch.

    Args:
        cuts: indices of the groups of each micro-batch.
        seed: seed of the adapters' dropout, where the scorer is in training mode.
        advance: called with the number of groups done since the last call.
    """
    rows_by_index: dict[int, Tensor] = {}
    for members, _ in world.share(cuts):
        torch.manual_seed(seed + members[0])
        scores = _score_micro_batch(scorer, batch.part(members), world)
        if world.size > 1:
            scores = scores.cpu()  # To be sent to the other processes.
        rows_by_index.update(zip(members, scores.unbind(-2), strict=True))
        advance(len(members) * world.size)
    for rank_rows in world.gather(rows_by_index):
        rows_by_index.update(rank_rows)
    widest = max(row.shape[-1] for row in rows_by_index.values())
    rows = [pad(rows_by_index[i], (0, widest - rows_by_index[i].shape[-1])) for i in range(len(batch.groups))]
    return torch.stack(rows, -2)


def objective_tables(
    groups: Sequence[CandidateGroup], references: References, device: torch.device
) -> tuple[Tensor, Groups]:
    """The references' log-probs [R, G, K], and the candidates' masks, preferences, scores and labels, on a device.

    Args:
        references: [R][groups][candidates].
    """
    facts = group_tensors([group.group for group in groups], [group.tokens for group in groups])
    tables = [padded_table(table, facts.mask.shape[1]) for table in references]
    reference = torch.stack(tables) if tables else torch.zeros(0, *facts.mask.shape, dtype=torch.float64)
    tensors = {name: value for name, value in vars(facts).items() if value is not None}
    reference, *copies = copy_together([reference, *tensors.values()], device)
    return reference, Groups(**dict(zip(tensors, copies, strict=True)))


def with_scores(scores: Tensor, facts: Groups) -> tuple[Tensor, Groups]:
    """The policy's log-probs [G, K], and the facts with a preference head's rewards where scores are [2, G, K]."""
    return (scores[0], replace(facts, rewards=scores[1])) if scores.ndim == 3 else (scores, facts)


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
    reference, facts = objective_tables(groups, references, scores.device)
    policy, facts = with_scores(scores, facts)
    return policy, reference, facts


def _score_micro_batch(scorer: Scorer, batch: Batch, world: World) -> Tensor:
    with precision(world.device, batch.dtype):
        scores: Tensor = scorer(scorer.collate(batch.groups, batch.temperature).to(world.device))
    return scores
