"""The order of groups, and what the objective is told of them."""

from __future__ import annotations

import pytest

from penchant.data.groups import PreferenceGroup
from penchant.training.batches import Order, group_tensors, padded_table


@pytest.mark.parametrize(("groups", "size"), [(10, 3), (9, 3), (2, 5)])
def test_each_epoch_sees_every_group_once_in_an_order_of_its_own(groups, size):
    order = Order(groups, size, seed=1, shuffle=True)
    epochs = [
        [i for turn in range(order.steps_per_epoch) for i in order.batch(epoch * order.steps_per_epoch + turn)]
        for epoch in range(4)
    ]
    assert all(sorted(epoch) == list(range(groups)) for epoch in epochs)
    if groups > 2:
        assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_files_order_on_request():
    order = Order(5, 2, seed=1, shuffle=False)
    assert [order.batch(step) for step in range(4)] == [[0, 1], [2, 3], [4], [0, 1]]


def test_facts_by_hand():
    groups = [
        PreferenceGroup("x", ("y",) * 3, scores=(0.5, 2.0, 0.5)),
        PreferenceGroup("x", ("y",), labels=(False,), weight=2.5),
        PreferenceGroup("x", ("y",) * 2, ranks=(2, 1)),
    ]
    facts = group_tensors(groups, [[2, 3, 4], [7], [1, 1]])
    assert facts.mask.int().tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert facts.tokens.tolist() == [[2, 3, 4], [7, 0, 0], [1, 1, 0]]
    assert facts.better.nonzero().tolist() == [[0, 1, 0], [0, 1, 2], [2, 1, 0]]
    assert facts.scores[0].tolist() == [0.5, 2.0, 0.5]
    assert facts.scored.int().tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert facts.labels.tolist() == [[-1, 1, -1], [-1, 0, 0], [-1, 1, 0]]
    assert facts.weights.tolist() == [1.0, 2.5, 1.0]


def test_padded_table():
    assert padded_table([[1.0], [2.0, 3.0]], 3).tolist() == [[1.0, 0.0, 0.0], [2.0, 3.0, 0.0]]
