"""Groups of candidates for the tests of single methods."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from penchant.objectives import Groups


@pytest.fixture(scope="session")
def compared() -> Callable[[torch.Tensor], Groups]:
    """Groups with preferences [G, K, K] only: all candidates exist, of one token each, without scores."""

    def make(better: torch.Tensor) -> Groups:
        g, k, _ = better.shape
        return Groups(
            mask=torch.ones(g, k, dtype=torch.bool),
            tokens=torch.ones(g, k, dtype=torch.int64),
            better=better,
            scores=torch.zeros(g, k),
            scored=torch.zeros(g, k, dtype=torch.bool),
            labels=torch.zeros(g, k, dtype=torch.int64),
            weights=torch.ones(g),
        )

    return make
