"""Bytes counted on tensors without data: exact sums, and the same code's real tensors as the oracle."""

from __future__ import annotations

import torch
from torch import nn

from penchant.engine.memory import MemoryTracker, available_bytes, process_bytes, replace_tensors, track_memory

CPU = torch.device("cpu")


class TestMemoryTracker:
    def test_counts_storages_not_tensors_and_forgets_the_dead(self):
        with track_memory() as tracker:
            tensor = torch.empty(100)
            view = tensor[10:].view(9, 10)
            assert tracker.live == 400
            result = tensor + 1
            assert tracker.live == 800
            del result
            assert (tracker.live, tracker.peak) == (400, 800)
            tracker.reset()
            assert tracker.peak == 400
            del tensor
            assert tracker.live == 400
            del view
            assert tracker.live == 0

    def test_forward_and_backward_by_hand(self):
        layer = nn.Linear(8, 4, bias=False, device="meta")
        with track_memory() as tracker:
            replace_tensors(layer, CPU)
            assert tracker.live == 4 * 8 * 4
            x = torch.empty(10, 8)
            start_bytes = tracker.live
            out = layer(x).tanh()
            # tanh keeps its result; the product before it is gone.
            assert tracker.live - start_bytes == 10 * 4 * 4
            out.sum().backward()
            del out
            assert layer.weight.grad is not None
            assert tracker.live - start_bytes == layer.weight.grad.nbytes == 128

    def test_real_tensors_count_the_same(self):
        def work(layer: nn.Module) -> None:
            layer(torch.ones(32, 16)).relu().square().sum().backward()

        with track_memory() as fake:
            layer = nn.Linear(16, 16, device="meta")
            replace_tensors(layer, CPU)
            fake.reset()
            start_bytes = fake.live
            work(layer)
        real_layer = nn.Linear(16, 16)
        with MemoryTracker() as real:
            work(real_layer)
        assert (fake.peak - start_bytes, fake.live - start_bytes) == (real.peak, real.live)

    def test_ties_are_kept(self):
        with torch.device("meta"):
            pair = nn.ModuleList([nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)])
        pair[1].weight = pair[0].weight
        with track_memory() as tracker:
            replace_tensors(pair, CPU)
        assert pair[1].weight is pair[0].weight
        assert tracker.live == 7 * 3 * 4


def test_this_machine():
    process = process_bytes(CPU)
    assert process > 50 << 20
    assert process < available_bytes(CPU)
