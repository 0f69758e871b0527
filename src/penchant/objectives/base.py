"""The objective protocol: log-probs of a batch of groups in, losses and metrics out.

Shapes: G groups, K candidates (the most any group has; masked where a group has fewer), R references.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

State = Mapping[str, Tensor]
"""The tensors that a method keeps between optimizer steps, by name; empty for most methods."""


@dataclass(frozen=True)
class Sum:
    """A mean before its division, so that micro-batches and ranks add up exactly."""

    total: Tensor
    count: Tensor


@dataclass(frozen=True)
class Groups:
    """Masks, preferences, scores and labels of a batch's candidates.

    Attributes:
        mask: [G, K] bool, True where a candidate exists.
        tokens: [G, K] int64, tokens in each candidate's log-prob.
        better: [G, K, K] bool, ``better[g, i, j]``: candidate i is preferred to candidate j.
        scores: [G, K] float32, where `scored`; higher is better.
        scored: [G, K] bool.
        labels: [G, K] int64, 1 desirable, -1 undesirable, 0 unknown.
        weights: [G] float32, the weight of each group.
        mismatched: [G, K] bool, a response to *another* prompt, never in `mask`; None where none was asked for.
        rewards: [G, K] a preference head's rewards, with gradient; None where the model has no head.
    """

    mask: Tensor
    tokens: Tensor
    better: Tensor
    scores: Tensor
    scored: Tensor
    labels: Tensor
    weights: Tensor
    mismatched: Tensor | None = None
    rewards: Tensor | None = None

    def to(self, device: torch.device) -> Groups:
        """The same groups with their tensors on a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Output:
    """Losses and metrics of a batch.

    Attributes:
        losses: [G] each group's loss, nats; 0 where its weight is 0.
        weights: [G] weight of each group in the mean; 0 where it has nothing to learn from.
        metrics: name -> (total, count); the mean is total / count over any number of batches.
    """

    losses: Tensor
    weights: Tensor
    metrics: Mapping[str, Sum]

    @property
    def loss(self) -> Sum:
        """The weighted sum of the groups' losses, nats, and the sum of their weights."""
        return Sum((self.losses * self.weights).sum(), self.weights.sum())


@dataclass(frozen=True)
class Needs:
    """What a method needs; a run is checked against it before a model is loaded.

    Attributes:
        references: least number of frozen references; 0 where the method has none.
        many_references: whether it takes more than that.
        candidates: least number of candidates in a group.
        pairs: some candidate preferred to another, in a group it learns from.
        scores: a number for each candidate.
        labels: desirable or undesirable, for each candidate.
        mismatched: a response to another prompt beside each group's own.
        head: a preference head on the policy.
        fitting_pairs: pairs that are neither trained on nor tested on, to fit its state to before the first step.
        on_policy: candidates drawn from the policy itself, with the probability that it gives to each.
        trains: the model's output for a candidate: its log-prob, or (of a reward model) its reward.
    """

    references: int = 1
    many_references: bool = False
    candidates: int = 2
    pairs: bool = True
    scores: bool = False
    labels: bool = False
    mismatched: bool = False
    head: bool = False
    fitting_pairs: bool = False
    on_policy: bool = False
    trains: Literal["log_probs", "rewards"] = "log_probs"

    def __or__(self, other: Needs) -> Needs:
        """The needs of two methods together."""
        if self.trains != other.trains:
            raise ValueError(f"one part trains {self.trains}, another {other.trains}: a model has one output")
        together = {field.name: max(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return Needs(**together)


@runtime_checkable
class Objective(Protocol):
    """A preference method: a frozen dataclass whose fields are its hyper-parameters.

    `coupled`: whether a group's loss depends on the other groups of the optimizer batch.
    """

    name: ClassVar[str]

    @property
    def needs(self) -> Needs: ...

    @property
    def coupled(self) -> bool: ...

    def initial_state(self, seed: int) -> State:
        """The state before the first step; `seed` is the run's, for methods that draw random numbers."""
        ...

    def __call__(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> tuple[Output, State]:
        """Losses and metrics of a training batch, and the state after it.

        Args:
            policy: [G, K] log-probs, nats, float32 or better (rewards, where the model is a reward model); masked
                slots may hold anything.
            reference: [R, G, K] log-probs of R frozen references, in the same dtype.
            groups: masks, preferences, scores and labels of the candidates.
            state: from `initial_state` or the last training step.
        """
        ...

    def evaluate(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> Output:
        """Losses and metrics of held-out groups; reads the state, never changes it."""
        ...

    # Dataclass fields are read back into the saved configuration.
    __dataclass_fields__: ClassVar[dict[str, Any]]


@runtime_checkable
class FittedObjective(Protocol):
    """A method that fits its state once to the references, before the first step."""

    def fit(self, reference: Tensor, groups: Groups, state: State) -> State:
        """The state for the first step.

        Args:
            reference: [R, G, K] log-probs of the groups of `data.reference_held_out` where `needs.fitting_pairs`,
                else of the training groups.
            groups: masks, preferences, scores and labels of these groups.
            state: from `initial_state`.
        """
        ...


class Stateless(ABC):
    """The protocol for a method without state: it defines `output`, for training and held-out groups alike."""

    needs: ClassVar[Needs] = Needs()
    coupled: ClassVar[bool] = False

    @abstractmethod
    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        """Losses and metrics; see `Objective.__call__`."""

    def initial_state(self, seed: int) -> State:
        return {}

    def __call__(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> tuple[Output, State]:
        return self.output(policy, reference, groups), state

    def evaluate(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> Output:
        return self.output(policy, reference, groups)


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise ValueError for a hyper-parameter's value, by its name."""
    if not condition:
        raise ValueError(f"{name} is {value!r}, expected {expected}")
