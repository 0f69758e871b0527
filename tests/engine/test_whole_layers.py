"""Layers compiled whole, and working weights: here on the CPU, by a compiler that makes no code of the graphs."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers as hf
from torch._dynamo.utils import counters

from penchant.data.trees import pack, with_prompts_first
from penchant.engine.kernels import layer_fusion
from penchant.engine.scorer_choice import compile_scorer
from penchant.engine.tree import TreeScorer, use_tree
from penchant.engine.whole_layers import compile_layers, decoder_layers
from penchant.engine.working_weights import WorkingWeights

SHAPES = [(5, (3, 4)), (9, (2, 6, 1))]


@pytest.fixture
def model(monkeypatch):
    """A tiny Llama on the tree, its layers as on a GPU: not fused."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    config = hf.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=True, tie_word_embeddings=True,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config)
    monkeypatch.setattr(layer_fusion, "_fuse_modules", lambda model: None)
    use_tree(model)
    return model


def random_batch(make_groups, seed):
    """A batch of other sizes for every seed."""
    draw = torch.Generator().manual_seed(seed)

    def sizes(low, high, n):
        return torch.randint(low, high, (n,), generator=draw).tolist()

    groups = sizes(2, 5, 1)[0]
    return with_prompts_first(
        pack(make_groups([(sizes(2, 30, 1)[0], tuple(sizes(1, 9, sizes(2, 6, 1)[0]))) for _ in range(groups)], seed))
    )


def log_probs_and_gradients(model, batch):
    model.zero_grad()
    scores = TreeScorer(model)(batch)
    scores.sum().backward()
    return scores.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_50_batches_compile_a_layer_once_and_the_last_once(model, make_groups):
    """In one graph without a break, whatever the sizes; the last layer reads fewer rows."""
    counters.clear()
    expected = [log_probs_and_gradients(model, random_batch(make_groups, seed)) for seed in range(3)]
    compile_layers(model, "aot_eager")
    for seed in range(50):
        scores, gradients = log_probs_and_gradients(model, random_batch(make_groups, seed))
        if seed < len(expected):
            torch.testing.assert_close(scores, expected[seed][0], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(gradients, expected[seed][1], rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_layers_that_do_not_compile_run_as_they_are(model, make_groups, caplog):
    def fail(graph, inputs):
        raise RuntimeError("no such card")

    batch = random_batch(make_groups, 0)
    expected, _ = log_probs_and_gradients(model, batch)
    compile_layers(model, fail)
    with caplog.at_level(logging.WARNING):
        scores, _ = log_probs_and_gradients(model, batch)
    torch.testing.assert_close(scores, expected, rtol=0, atol=0)
    assert len(caplog.messages) == 1
    assert "layers are not compiled" in caplog.messages[0]
    assert "no such card" in caplog.messages[0]
    assert all(layer._compiled_call_impl is None for layer in decoder_layers(model))


@pytest.mark.parametrize(("factor", "is_same"), [(1.0, True), (1.2, False)])
def test_compiled_layers_are_checked_on_the_data(model, make_groups, monkeypatch, factor, is_same):
    """A compiler whose graphs compute something else is not used."""

    def compiler(graph, inputs):
        return lambda *arguments: tuple(factor * result for result in graph(*arguments))

    monkeypatch.setattr(TreeScorer, "collate", lambda self, groups, temperature: with_prompts_first(pack(groups)))
    notice = compile_scorer(TreeScorer(model), make_groups(SHAPES, 0), "float32", None, compiler)
    compiled = [layer._compiled_call_impl is not None for layer in decoder_layers(model)]
    assert (notice is None) == is_same
    assert compiled == [is_same] * 3
    assert is_same or "they give log-probs that differ by" in notice


def test_working_weights_give_autocasts_gradients(model, make_groups):
    """The same bits as when every layer casts its weights, over two micro-batches."""
    batches = [pack(make_groups(SHAPES, seed)) for seed in range(2)]

    def gradients(weights):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if weights is None:
                for batch in batches:
                    TreeScorer(model)(batch).sum().backward()
            else:
                with weights.in_place():
                    for batch in batches:
                        TreeScorer(model)(batch).sum().backward()
                        weights.add_gradients()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradients(None)
    weights = WorkingWeights(model, torch.bfloat16)
    assert len(weights._copies) == 3 * (7 + 4)  # matrices, and attention's biases
    actual = gradients(weights)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(p.grad is None for p in weights._copies)


def test_working_weights_follow_the_float32_weights(model):
    weights, (layer, *_) = WorkingWeights(model, torch.bfloat16), decoder_layers(model)
    with torch.no_grad():
        layer.mlp.up_proj.weight.fill_(0.3)
    with weights.in_place():
        assert layer.mlp.up_proj.weight.dtype == torch.bfloat16
        assert float(layer.mlp.up_proj.weight.detach()[0, 0]) == pytest.approx(0.3, rel=2**-8)
    assert layer.mlp.up_proj.weight.dtype == torch.float32
