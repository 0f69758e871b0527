"""Packing, worked out by hand, and micro-batches, by their invariants."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import Branches, pack, split_into_micro_batches


def group(prompt, *responses):
    preferences = PreferenceGroup("x", ("y",) * len(responses))
    return TokenizedGroup(np.array(prompt), tuple(map(np.array, responses)), preferences)


def test_pack_by_hand():
    batch = pack([group([10, 11], [20], [21, 22]), group([12], [23, 24, 25])])
    assert batch.input_ids.tolist() == [10, 11, 20, 21, 22, 12, 23, 24, 25]
    assert batch.positions.tolist() == [0, 1, 2, 2, 3, 0, 1, 2, 3]
    assert batch.branches == (Branches(2, (1, 2)), Branches(1, (3,)))
    assert batch.reach.tolist() == [5, 5, 3, 5, 5, 9, 9, 9, 9]
    assert batch.source.tolist() == [1, 1, 3, 5, 6, 7]
    assert batch.paths.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.targets.tolist() == [20, 21, 22, 23, 24, 25]
    assert batch.lengths.tolist() == [1, 2, 3]
    assert batch.slots.tolist() == [0, 1, 2]
    assert batch.shape == (2, 2)
    assert batch.to_group_matrix(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[1.0, 2.0], [3.0, 0.0]]


def test_micro_batches_by_hand():
    assert split_into_micro_batches([5, 3, 4, 2], 7) == [[0, 3], [1, 2]]
    assert split_into_micro_batches([9, 1], 4) == [[0], [1]]


@given(costs=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 80))
def test_every_group_is_in_one_micro_batch_within_the_budget(costs, budget):
    cuts = split_into_micro_batches(costs, budget)
    assert sorted(i for members in cuts for i in members) == list(range(len(costs)))
    assert all(len(members) == 1 or sum(costs[i] for i in members) <= budget for members in cuts)
    assert cuts == sorted(cuts)
    if cuts:
        assert len(cuts) <= max(1, 2 * -(-sum(costs) // budget)) + sum(cost > budget for cost in costs)
