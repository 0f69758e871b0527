from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from penchant.engine.kernels.lora_linear import fuse_adapters, lora_linear


def numbers(*shape, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=source).requires_grad_()


@pytest.mark.parametrize("biased", [True, False])
def test_the_formula_and_its_gradients(biased):
    x, a, b = numbers(1, 7, 5), numbers(2, 5, seed=1), numbers(4, 2, seed=2)
    weight, bias = numbers(4, 5, seed=3).detach(), numbers(4, seed=4).detach() if biased else None

    def computed(x, a, b):
        return lora_linear(x, weight, bias, a, b, 0.5)

    expected = x @ weight.T + 0.5 * x @ a.T @ b.T + (bias if biased else 0.0)
    torch.testing.assert_close(computed(x, a, b), expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(computed, (x, a, b))


def test_an_input_that_needs_no_gradient():
    x, a, b, weight = numbers(7, 5).detach(), numbers(2, 5, seed=1), numbers(4, 2, seed=2), numbers(4, 5).detach()
    assert torch.autograd.gradcheck(lambda a, b: lora_linear(x, weight, None, a, b, 0.5), (a, b))


def adapted_model(**settings):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3, bias=False))
    chosen = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(layers, LoraConfig(**chosen))


def fused_layers(model):
    return [name for name, module in model.named_modules() if type(module).__mro__[1].__name__ == "_Fused"]


def test_as_peft_computes_it():
    model = adapted_model()
    plain = copy.deepcopy(model)
    fuse_adapters(model)
    assert len(fused_layers(model)) == 2
    x = torch.randn(4, 6)
    results = []
    for candidate in (model, plain):
        out = candidate(x)
        out.square().sum().backward()
        results.append((out, {name: p.grad for name, p in candidate.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(*results)
    assert all("lora" in name for name in results[0][1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = model(x), plain(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_switched_off_and_merged():
    model = adapted_model()
    plain = copy.deepcopy(model)
    fuse_adapters(model)
    x = torch.randn(4, 6)
    with model.disable_adapter(), plain.disable_adapter():
        assert torch.equal(model(x), plain(x))
    model.merge_adapter()
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.1}, {"use_dora": True}], ids=["dropout", "dora"])
def test_other_adapters_stay_pefts_own(settings):
    model = adapted_model(**settings)
    fuse_adapters(model)
    assert not fused_layers(model)


def test_an_adapter_with_a_bias_stays_pefts_own():
    model = adapted_model(lora_bias=True, target_modules=["0"])
    fuse_adapters(model)
    assert not fused_layers(model)
