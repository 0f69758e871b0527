"""The output layer by a GPU's rule: exact sums over blocks, few launches, and no memory but that of logits.

Launches and bytes are counted on tensors without data, by the formulas and products of a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from penchant.engine.kernels import compiled, output_layer
from penchant.engine.kernels.output_layer import BlockRule, Gradients, LowRank, OutputLayer
from penchant.engine.memory import track_memory

TOKENS, WIDTH, WORDS, RANK = 32, 24, 512, 4
"""N, D, the number of words of one block, r."""

BLOCK_BYTES = TOKENS * WORDS * 2
ALL = (True, True, True, True, True)
NO_LAUNCH = {"slice", "view", "t", "permute", "unsqueeze", "select", "promote_types"}
PRODUCTS = {"mm", "addmm", "addmm_"}


def gpu_rule(kept_blocks: int = 0) -> BlockRule:
    block = TOKENS * WORDS
    return BlockRule(block, kept_blocks * block, block, padded=False, float32_products=True)


def random_layer(blocks: int, rule: BlockRule, *, extras: bool) -> OutputLayer:
    """Random float32 weights as under autocast; with `extras` a bias and an adapter too."""
    weight = torch.randn(blocks * WORDS, WIDTH)
    if not extras:
        return OutputLayer(weight, None, None, None, rule)
    adapter = LowRank(torch.randn(TOKENS, RANK, dtype=torch.bfloat16), torch.randn(len(weight), RANK))
    return OutputLayer(weight, torch.randn(len(weight)), None, adapter, rule)


def random_rows() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states in bfloat16, targets and an upstream."""
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16)
    return hidden, torch.randint(0, WORDS, (TOKENS,)), torch.randn(TOKENS)


@pytest.fixture
def on_gpu(monkeypatch):
    """A GPU's formulas and products, for tensors without data."""
    monkeypatch.setattr(compiled, "use_compiled", lambda x: True)
    monkeypatch.setattr(output_layer, "_has_float32_kernel", lambda factor: True)


def sums_and_reference(blocks: int, monkeypatch) -> tuple[Gradients, Gradients]:
    """Gradients before they are rounded, and those of float64 products of the same factors in bfloat16."""
    torch.manual_seed(0)
    head = random_layer(blocks, gpu_rule(), extras=True)
    hidden, targets, upstream = random_rows()
    by_block = []
    add_block = OutputLayer._add_block
    monkeypatch.setattr(
        OutputLayer,
        "_add_block",
        lambda self, sums, logits, x, block: (
            by_block.append(logits.double()) or add_block(self, sums, logits, x, block)
        ),
    )
    _, normalisers, _ = head.log_probs(hidden, targets, 0)
    sums = head.gradients(hidden, targets, normalisers, upstream, [], ALL)
    assert len(by_block) == blocks
    logits = torch.cat(by_block, 1)
    low, up, weight = (factor.bfloat16().double() for factor in (*head.adapter, head.weight))
    return sums, Gradients(logits @ weight, logits.T @ hidden.double(), None, logits @ up, logits.T @ low)


@pytest.mark.parametrize("blocks", [2, 5, 16])
def test_products_are_added_up_without_rounding(blocks, monkeypatch):
    """Rounding to bfloat16 is an error of some 2e-3, in float32 of 1e-7."""
    sums, reference = sums_and_reference(blocks, monkeypatch)
    for name in ("hidden", "weight", "low", "up"):
        actual, expected = getattr(sums, name), getattr(reference, name)
        assert actual.dtype == torch.float32
        error = actual.double() - expected
        assert error.norm() < 1e-5 * expected.norm(), name
        assert abs(error.mean()) < 1e-5 * expected.abs().mean(), name


def test_one_block_is_rounded_once(monkeypatch):
    """There is nothing to add up: the product comes in the hidden states' own dtype."""
    sums, reference = sums_and_reference(1, monkeypatch)
    for name in ("hidden", "low"):
        actual, expected = getattr(sums, name), getattr(reference, name)
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual, expected.bfloat16(), rtol=2**-7, atol=1e-5)


class Launches(TorchDispatchMode):
    """Counts a GPU's launches that are no matrix products; a compiled formula is one, whatever it computes."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.count = 0
        results_only = compiled._results_only
        monkeypatch.setattr(compiled, "_results_only", lambda *x: self._add_formula() or results_only(*x))

    def _add_formula(self) -> None:
        self.count += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        is_launch = not (func.namespace == "prim" or "empty" in name or name in NO_LAUNCH | PRODUCTS)
        self.count += is_launch
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(("extras", "a_block"), [(False, (3, 3)), (True, (6, 6))])
def test_launches_of_a_block(monkeypatch, extras, a_block):
    """Forward: the weight's cast, the targets' index, the formula; with bias and adapter their casts and one sum.

    Backward: the same three, for the bias a sum and a copy, for the adapter a cast.
    """
    counts = []
    for blocks in (1, 2, 4):
        with FakeTensorMode(), Launches(monkeypatch) as launches:
            head = random_layer(blocks, gpu_rule(blocks), extras=extras)
            hidden, targets, upstream = random_rows()
            start = launches.count
            _, normalisers, logits = head.log_probs(hidden, targets, blocks)
            middle = launches.count
            head.gradients(hidden, targets, normalisers, upstream, logits, ALL).rounded(hidden.dtype)
            counts.append((middle - start, launches.count - middle))
    one, two, four = counts
    assert tuple(b - a for a, b in zip(two, four, strict=True)) == (2 * a_block[0], 2 * a_block[1])
    assert one == (a_block[0] + 3, a_block[1])  # zeros, -inf and the last subtraction; no sum to round


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("kept_blocks", [0, 2, 4])
def test_memory_is_that_of_the_kept_logits_and_one_block(kept_blocks):
    """A formula is one kernel, whose parts take no memory, and the logits become their gradient in place."""
    with track_memory() as tracker:
        rule = gpu_rule(kept_blocks)
        weight = torch.randn(4 * WORDS, WIDTH, dtype=torch.bfloat16)
        head = OutputLayer(weight, None, None, None, rule)
        hidden, targets, upstream = random_rows()
        row_bytes, start = 4 * TOKENS, tracker.live
        tracker.reset()
        _, normalisers, logits = head.log_probs(hidden, targets, rule.blocks_to_keep(TOKENS, len(weight)))
        assert len(logits) == kept_blocks
        assert 0 <= tracker.peak - start - min(kept_blocks + 1, 4) * BLOCK_BYTES <= 8 * row_bytes
        tracker.reset()
        start = tracker.live
        head.gradients(hidden, targets, normalisers, upstream, logits, (True, False, False, False, False))
        sum_bytes = 4 * TOKENS * WIDTH
        logits_bytes = 0 if kept_blocks else BLOCK_BYTES
        assert 0 <= tracker.peak - start - logits_bytes - sum_bytes <= 8 * row_bytes
