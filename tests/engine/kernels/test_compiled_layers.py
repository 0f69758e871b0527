"""Fused parts against their formulas written out, in float64: values, and gradients by finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, silu

from penchant.engine.kernels import compiled_layers as fused
from penchant.engine.kernels.compiled_layers import rms_norm, rotate, swiglu, swiglu_linear


def numbers(*shape, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=source).requires_grad_()


def rotated_by_hand(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


@pytest.mark.parametrize("shape", [(1, 7, 6), (1, 2, 5, 4), (3, 8)])
def test_rms_norm(shape):
    x, weight = numbers(*shape), numbers(shape[-1], seed=1)
    expected = weight * x / (x.pow(2).mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, 0.1), expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda *tensors: rms_norm(*tensors, 0.1), (x, weight))


def test_rms_norm_of_a_frozen_weight():
    x, weight = numbers(4, 6), numbers(6, seed=1).detach()
    assert torch.autograd.gradcheck(lambda tensor: rms_norm(tensor, weight, 1e-6), (x,))


def test_rms_norm_of_zeros_is_zero():
    x = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    y = rms_norm(x, numbers(4).detach(), 1e-6)
    y.sum().backward()
    assert not y.any()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("elements", [1 << 17, 10], ids=["at once", "a row at a time"])
def test_swiglu(monkeypatch, elements):
    monkeypatch.setattr(fused, "_PASS_ELEMENTS", elements)
    gate, up = numbers(1, 5, 6), numbers(1, 5, 6, seed=1)
    torch.testing.assert_close(swiglu(gate, up), silu(gate) * up, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(swiglu, (gate, up))


def test_swiglu_of_a_gradient_that_is_a_view():
    """An upstream gradient that is not contiguous in memory."""
    gate, up, upstream = numbers(1, 5, 6), numbers(1, 5, 6, seed=1), numbers(6, 5, seed=2).detach().T[None]
    ours, theirs = (torch.autograd.grad(f, (gate, up), upstream) for f in (swiglu(gate, up), silu(gate) * up))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("elements", [1 << 17, 10], ids=["at once", "a row at a time"])
def test_swiglu_linear(monkeypatch, elements, trained, biased):
    monkeypatch.setattr(fused, "_PASS_ELEMENTS", elements)
    gate, up, weight = numbers(1, 5, 6), numbers(1, 5, 6, seed=1), numbers(4, 6, seed=2).requires_grad_(trained)
    bias = numbers(4, seed=3).requires_grad_(trained) if biased else None
    expected = linear(silu(gate) * up, weight, bias)
    torch.testing.assert_close(swiglu_linear(gate, up, weight, bias), expected, rtol=1e-12, atol=1e-14)
    inputs = [x for x in (gate, up, weight, bias) if x is not None]
    assert torch.autograd.gradcheck(lambda *x: swiglu_linear(*x, *[None] * (4 - len(x))), inputs)


def test_a_second_backward_of_swiglu_linear_equals_the_first():
    inputs = numbers(1, 5, 6), numbers(1, 5, 6, seed=1), numbers(4, 6, seed=2)
    total = swiglu_linear(*inputs, None).pow(2).sum()
    first_gradients, second_gradients = (torch.autograd.grad(total, inputs, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(second_gradients, first_gradients, rtol=0, atol=0)


def test_swiglu_linear_under_autocast_equals_the_layers():
    gate, up, weight = (x.detach().float().requires_grad_() for x in (numbers(9, 6), numbers(9, 6), numbers(4, 6)))
    with torch.autocast("cpu", torch.bfloat16):
        ours = swiglu_linear(gate, up, weight, None)
        theirs = linear(silu(gate.bfloat16()) * up.bfloat16(), weight)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)
    gradient_pairs = zip(*(torch.autograd.grad(y.sum(), (gate, up, weight)) for y in (ours, theirs)), strict=True)
    for mine, other in gradient_pairs:
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, rtol=2e-2, atol=2e-2)


def test_rotate():
    """Also where the two halves' angles differ, and of heads that lie side by side in memory."""
    x, cos, sin = numbers(1, 5, 2, 6), numbers(1, 1, 5, 6, seed=1).detach(), numbers(1, 1, 5, 6, seed=2).detach()
    torch.testing.assert_close(
        rotate(x.transpose(1, 2), cos, sin), rotated_by_hand(x.transpose(1, 2), cos, sin), rtol=1e-12, atol=1e-14
    )
    assert torch.autograd.gradcheck(lambda tensor: rotate(tensor.transpose(1, 2), cos, sin), (x,))


def test_rotating_half_precision_by_float32_gives_float32_and_a_gradient_in_half():
    x = numbers(1, 2, 5, 6).detach().bfloat16().requires_grad_()
    cos, sin = numbers(1, 1, 5, 6, seed=1).detach().float(), numbers(1, 1, 5, 6, seed=2).detach().float()
    y = rotate(x, cos, sin)
    torch.testing.assert_close(y, rotated_by_hand(x.float(), cos, sin))
    y.sum().backward()
    assert (y.dtype, x.grad.dtype) == (torch.float32, torch.bfloat16)
