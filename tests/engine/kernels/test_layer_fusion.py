"""Layer fusion: the modules that are replaced, the same results, and foreign modules that are left alone.

test_tree.py tests that whole models stay exact: every family there is fused first.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import silu

from penchant.data.trees import pack
from penchant.engine.kernels.layer_fusion import fuse_layers
from penchant.engine.tree import TreeScorer, use_tree


def fused_classes(model):
    """Class names of a fused model, by the class whose forward replaced theirs."""
    classes = {}
    for module in model.modules():
        if "_penchant_fused" in vars(type(module)):
            classes.setdefault(type(module).__mro__[1].__name__, set()).add(type(module).__name__)
    return classes


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "olmo2", "smollm3"])
def test_common_families_are_fused_throughout(build, name):
    model = build(name)
    kind = type(model.model.layers[0]).__name__.removesuffix("DecoderLayer")
    fuse_layers(model)
    assert fused_classes(model) == {
        "_Norm": {f"{kind}RMSNorm"},
        "_Gate": {f"{kind}MLP"},
        f"{kind}Attention": {f"{kind}Attention"},
        "_LastLayer": {f"{kind}DecoderLayer"},
        "_RowSubset": {f"{kind}MLP"},
    }


def test_norms_of_another_formula_are_left_alone(build):
    """Gemma's norm multiplies by 1 + weight, and its gate is a GELU."""
    model = build("gemma2")
    fuse_layers(model)
    assert not {"_Norm", "_Gate"} & fused_classes(model).keys()


class Swapped(nn.Module):
    """A gated MLP with the activation on the other projection."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(4, 4) for _ in range(3))
        self.act_fn = silu

    def forward(self, x):
        return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))


class Raising(nn.Module):
    def forward(self, x):
        raise ValueError("not for you")


@pytest.mark.parametrize(
    "module", [Swapped(), Raising(), nn.LayerNorm(4), nn.LayerNorm(4, bias=False), nn.Linear(4, 4)]
)
def test_foreign_modules_are_left_alone(module):
    kind = type(module)
    fuse_layers(nn.Sequential(module))
    assert type(module) is kind


def test_a_fused_activation_that_is_no_silu_is_left_alone(build):
    model = build("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.GELU()
    fuse_layers(model)
    assert "_Gate" not in fused_classes(model)


def test_weights_names_and_other_uses_stay(build):
    model = build("llama").eval()
    plain = copy.deepcopy(model)
    fuse_layers(model)
    fuse_layers(model)
    ids = torch.arange(1, 12)[None]
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert str(model) == str(plain)
    settings = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(ids, **settings), plain.generate(ids, **settings))


def test_half_precision_keeps_the_norms_own_roundings(build):
    model = build("llama")
    norm, plain = model.model.norm, copy.deepcopy(model.model.norm).bfloat16()
    fuse_layers(model)
    x = torch.randn(3, 32).bfloat16()
    assert torch.equal(norm.bfloat16()(x), plain(x))


def test_a_copied_model_is_independent(build, make_groups):
    model = build("llama")
    use_tree(model)
    batch = pack(make_groups([(6, (3, 4))], 0))
    log_probs = TreeScorer(model)(batch)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert torch.equal(TreeScorer(model)(batch), log_probs)
    assert not torch.equal(TreeScorer(other)(batch), log_probs)


def test_the_last_layers_mlp_computes_tokens_that_are_read_only(build, make_groups):
    model = build("llama")
    use_tree(model)
    row_counts = [[], []]
    for layer, sizes in zip(model.model.layers, row_counts, strict=True):
        layer.mlp.gate_proj.register_forward_hook(lambda m, inputs, out, sizes=sizes: sizes.append(inputs[0].shape[1]))
    TreeScorer(model)(pack(make_groups([(50, (3, 4)), (20, (2, 2))], 0)))
    assert row_counts == [[81], [13]]
    model.set_attn_implementation("eager")
    model(input_ids=torch.arange(1, 12)[None])
    assert row_counts == [[81, 11], [13, 11]]
