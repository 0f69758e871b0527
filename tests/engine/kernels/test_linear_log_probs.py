"""Log-probs without logits against log_softmax, value and gradient, in every way they are computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from penchant.engine.kernels import compiled, output_layer
from penchant.engine.kernels import linear_log_probs as linear
from penchant.engine.kernels.linear_log_probs import linear_log_probs
from penchant.engine.kernels.output_layer import CPU_RULE, BlockRule, block_rule

pytestmark = pytest.mark.usefixtures("both_ways")


def _use_rule(monkeypatch, **changes: int) -> None:
    """Cut and keep by such a rule, which beside the GPU's formulas adds up as on a GPU."""
    on_gpu = compiled.use_compiled(torch.empty(0))
    rule = replace(CPU_RULE, **changes, padded=not on_gpu, float32_products=on_gpu)
    monkeypatch.setattr(linear, "block_rule", lambda device, dtype: rule)


def _case(bias: bool, seed: int = 0):
    torch.manual_seed(seed)
    hidden = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(17, 6, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(17, dtype=torch.float64, requires_grad=True) if bias else None
    return hidden, weight, offset, torch.randint(0, 17, (11,))


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("words", "kept_elements"), [(1 << 20, 1 << 26), (4, 1 << 26), (4, 11 * 10), (4, 0)])
def test_value_and_gradient_equal_log_softmax(monkeypatch, softcap, bias, words, kept_elements):
    """In one block and in five; with all logits kept, two blocks' of five, and none."""
    monkeypatch.setattr(output_layer, "MIN_BLOCK", words)
    _use_rule(monkeypatch, block_elements=11 * words, kept_elements=kept_elements)
    monkeypatch.setattr(output_layer, "_PASS_ELEMENTS", 4 * 3)
    hidden, weight, offset, targets = _case(bias)
    inputs = [x for x in (hidden, weight, offset) if x is not None]
    upstream = torch.randn(11, dtype=torch.float64)
    logits = torch.nn.functional.linear(hidden, weight, offset)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = logits.log_softmax(-1)[torch.arange(11), targets]
    expected_gradients = torch.autograd.grad(expected, inputs, upstream)
    actual = linear_log_probs(hidden, weight, offset, targets, softcap=softcap)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    for mine, theirs in zip(torch.autograd.grad(actual, inputs, upstream), expected_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kept_elements", [1 << 26, 0])
def test_a_second_backward_is_the_first(monkeypatch, kept_elements):
    """The first backward uses up the kept logits."""
    _use_rule(monkeypatch, kept_elements=kept_elements)
    hidden, weight, _, targets = _case(bias=False)
    total = linear_log_probs(hidden, weight, None, targets).sum()
    first_gradients, second_gradients = (
        torch.autograd.grad(total, (hidden, weight), retain_graph=True) for _ in range(2)
    )
    torch.testing.assert_close(second_gradients, first_gradients, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradients_in_bfloat16_are_rounded_once(softcap):
    """Logits are kept as the product left them: their gradient is that of float32 arithmetic on them, rounded."""
    hidden, weight, _, targets = _case(bias=False)
    hidden, weight = (x.detach().bfloat16().requires_grad_() for x in (hidden, weight))
    log_probs = linear_log_probs(hidden, weight, None, targets, softcap=softcap)
    (gradient,) = torch.autograd.grad(log_probs.sum(), hidden)
    logits = (hidden @ weight.T).detach().float().requires_grad_()
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = capped.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(log_probs, expected.detach(), rtol=1e-5, atol=1e-6)
    (of_logits,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(gradient, of_logits.bfloat16() @ weight.detach(), rtol=1e-2, atol=1e-3)


def test_without_a_graph_no_logits_are_kept(monkeypatch):
    """A trained head says that it needs a gradient even where no gradients are computed."""
    requests = []
    log_probs = output_layer.OutputLayer.log_probs
    monkeypatch.setattr(
        output_layer.OutputLayer,
        "log_probs",
        lambda head, x, y, keep: requests.append(keep) or log_probs(head, x, y, keep),
    )
    hidden, weight, _, targets = _case(bias=False)
    with torch.no_grad():
        alone = linear_log_probs(hidden, weight, None, targets)
    torch.testing.assert_close(linear_log_probs(hidden, weight, None, targets), alone, rtol=0, atol=0)
    assert requests == [0, 1]


def _widths(rule: BlockRule, tokens: int, vocabulary: int) -> list[int]:
    return [block.stop - block.start for block in rule.slices(tokens, vocabulary)]


def test_sizes_of_blocks_on_a_cpu():
    rule = block_rule(torch.device("cpu"), torch.bfloat16)
    assert rule is CPU_RULE
    assert _widths(rule, 10, 152_000) == [152_000]
    assert _widths(rule, 1000, 20_000) == [8192, 8192, 3616]
    assert _widths(rule, 1 << 20, 1000) == [512, 488]
    assert [rule.blocks_to_keep(tokens, 152_000) for tokens in (10, 500, 2000)] == [1, 10, 16]
    assert [rule.room(1000, words, 20_000) for words in (8192, 3616, 20_000)] == [1 << 23, 1 << 23, 20_000_000]


@pytest.mark.parametrize(
    ("gigabytes", "dtype", "tokens", "widths", "kept_blocks"),
    [
        (139, torch.bfloat16, 4096, [131_072, 20_928], 2),
        (139, torch.bfloat16, 3532, [152_000], 1),  # less than 2^29 logits are one block, whatever 512 divides
        (139, torch.bfloat16, 21_845, [24_576] * 6 + [4_544], 7),  # 6.95 GiB may be kept: all of 6.18 are
        (139, torch.bfloat16, 25_000, [20_992] * 7 + [5_056], 7),
        (139, torch.float32, 24_000, [22_016] * 6 + [19_904], 3),
        (16, torch.float32, 4096, [52_224, 52_224, 47_552], 1),  # no block larger than 5 % of the card
    ],
)
def test_sizes_of_blocks_on_a_gpu(monkeypatch, gigabytes, dtype, tokens, widths, kept_blocks):
    monkeypatch.setattr(output_layer, "ASSUMED_CARD_BYTES", gigabytes << 30)
    rule = block_rule(torch.device("cuda"), dtype)
    assert _widths(rule, tokens, 152_000) == widths
    assert rule.blocks_to_keep(tokens, 152_000) == kept_blocks
    assert rule.room(tokens, 5_056, 152_000) == 5_056 * tokens


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradient_by_finite_differences(softcap):
    hidden, weight, offset, targets = _case(bias=True)
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_log_probs(h, w, b, targets, softcap=softcap), (hidden, weight, offset)
    )


@pytest.mark.parametrize("rows", [3, 11])
def test_frozen_head_gives_the_same_hidden_gradient(monkeypatch, rows):
    _use_rule(monkeypatch, frozen_elements=rows * 17)
    hidden, weight, _, targets = _case(bias=False)
    upstream = torch.randn(11, dtype=torch.float64)
    (trained,) = torch.autograd.grad(linear_log_probs(hidden, weight, None, targets), hidden, upstream)
    (frozen,) = torch.autograd.grad(linear_log_probs(hidden, weight.detach(), None, targets), hidden, upstream)
    torch.testing.assert_close(frozen, trained, rtol=1e-12, atol=1e-14)


def test_sums_in_float32_from_bfloat16():
    hidden, weight, _, targets = _case(bias=False)
    log_probs = linear_log_probs(hidden.bfloat16(), weight.bfloat16(), None, targets)
    assert log_probs.dtype == torch.float32
