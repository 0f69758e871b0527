"""Scorers: the modules that are trained and that references are read by, from groups to a number of every candidate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import TreeBatch, pack


class CandidateGroup(Protocol):
    """What the training loop reads of a group; the rest is between its scorer and whatever made it."""

    @property
    def group(self) -> PreferenceGroup:
        """The candidates and the preferences among them."""
        ...

    @property
    def tokens(self) -> Sequence[int]:
        """Number of trained tokens of each candidate; 1 for a picture."""
        ...

    @property
    def length(self) -> int:
        """Number of tokens that are computed for the group; positions of latents for pictures."""
        ...


class Scorer(nn.Module, ABC):
    """A module whose `forward` gives [G, K] numbers of a collated batch: log-probs, rewards or minus noise errors."""

    @abstractmethod
    def cost(self, group: Any) -> int:
        """Number of tokens that the group takes of a micro-batch's budget."""

    @abstractmethod
    def collate(self, groups: Sequence[Any], temperature: float) -> Any:
        """The batch of G groups that `forward` takes; its ``to(device)`` is the same batch on a device.

        Args:
            temperature: divisor of the logits before the softmax.
        """


class PackedScorer(Scorer):
    """A scorer of a language model, which reads groups packed in one row."""

    def collate(self, groups: Sequence[TokenizedGroup], temperature: float) -> TreeBatch:
        """The groups as one row; see `pack`."""
        return pack(groups, temperature)
