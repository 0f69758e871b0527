"""Bytes counted on tensors without data: exact sums, and the same code's real tensors as the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from penchant.engine.allocator import MallocSettings
from penchant.engine.heap import Heap
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


class TestHeap:
    MB = 1 << 20

    def test_freeing_a_large_block_raises_the_threshold(self):
        heap = Heap()
        block = heap.take(4 * self.MB)
        assert 4 * self.MB <= heap.resident <= 4 * self.MB + 8192
        heap.give(block)
        assert heap.resident == 0
        assert heap.threshold >= 4 * self.MB
        # From now on blocks of its size lie in the heap.
        low, high = heap.take(3 * self.MB), heap.take(3 * self.MB)
        heap.give(low)
        assert heap.resident >= 6 * self.MB
        heap.give(high)

    def test_a_hole_does_not_fit_its_own_successor_for_long(self):
        heap = Heap()
        heap.give(heap.take(4 * self.MB))
        block, _upper_block = heap.take(2 * self.MB), heap.take(2 * self.MB)
        start_bytes = heap.resident
        for _ in range(3):
            heap.give(block)
            block = heap.take(2 * self.MB)
        # The same two blocks are alive, and a hole.
        assert heap.resident == pytest.approx(start_bytes + 2 * self.MB, abs=128 << 10)
        resident = heap.resident
        heap.take(self.MB)
        assert heap.resident == resident

    def test_a_fixed_threshold_gives_all_back(self):
        heap = Heap(MallocSettings(threshold=1 << 20, trim=128 << 10, raises_thresholds=False))
        blocks = [heap.take(2 * self.MB) for _ in range(5)]
        for block in blocks:
            heap.give(block)
        assert heap.resident == 0

    def test_the_top_is_trimmed(self):
        heap = Heap()
        heap.give(heap.take(self.MB))
        blocks = [heap.take(self.MB // 2) for _ in range(40)]
        assert heap.resident >= 20 * self.MB
        for block in reversed(blocks):
            heap.give(block)
        assert heap.resident <= 3 * self.MB


def test_this_machine():
    process = process_bytes(CPU)
    assert process > 50 << 20
    assert process < available_bytes(CPU)
