"""Layers compiled whole, and working weights: here on the CPU, by a compiler that makes no code of the graphs."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers as hf
from torch._dynamo.utils import counters

from penchant.data.trees import pack, with_prompts_first
from penchant.engine import working_weights
from penchant.engine.kernels import layer_fusion
from penchant.engine.kernels.compiled import compile_layers, decoder_layers
from penchant.engine.scorer_choice import compile_scorer
from penchant.engine.tree import TreeScorer, use_tree
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


@pytest.mark.slow
def test_50_batches_compile_a_layer_once_and_the_last_once(model, make_groups):
    """In one graph without a break, whatever the sizes; the last layer reads fewer rows, the last norm is alone."""
    counters.clear()
    expected = [log_probs_and_gradients(model, random_batch(make_groups, seed)) for seed in range(3)]
    compile_layers(model, "aot_eager")
    for seed in range(50):
        scores, gradients = log_probs_and_gradients(model, random_batch(make_groups, seed))
        if seed < len(expected):
            torch.testing.assert_close(scores, expected[seed][0], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(gradients, expected[seed][1], rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 3
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


def compile_checked(model, groups, change):
    """The notice of layers whose compiler changes every graph's results, and whether they stay compiled."""

    def compiler(graph, inputs):
        return lambda *arguments: tuple(change(result) for result in graph(*arguments))

    weights = WorkingWeights(model, torch.float32)
    notice = compile_scorer(TreeScorer(model).train(), groups, "float32", weights, None, compiler)
    (is_compiled,) = {layer._compiled_call_impl is not None for layer in decoder_layers(model)}
    return notice, is_compiled


class BackwardFails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no kernel image")


@pytest.mark.slow_but("numbers")
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda x: x, None),
        (lambda x: 1.2 * x, "they give numbers that differ by 0."),
        (lambda x: x * torch.nan, "they give numbers that differ by nan"),
        (lambda x: x + 0.2 * (x - x.detach()), "differ by 0 (nats, or rewards) and gradients whose norm differs by "),
        (BackwardFails.apply, "no kernel image"),
    ],
    ids=["nothing", "numbers", "none", "gradients", "backward"],
)
def test_compiled_layers_are_checked_on_the_data(model, make_groups, monkeypatch, change, problem):
    """A compiler whose graphs compute something else, forward or backward, is not used."""
    monkeypatch.setattr(TreeScorer, "collate", lambda self, groups, temperature: with_prompts_first(pack(groups)))
    notice, is_compiled = compile_checked(model, make_groups(SHAPES, 0), change)
    assert is_compiled == (problem is None)
    assert notice is None if problem is None else problem in notice
    assert all(p.grad is None for p in model.parameters())


def test_a_frozen_model_is_left_as_it_is(model, make_groups):
    model.requires_grad_(False)
    assert compile_checked(model, make_groups(SHAPES, 0), lambda x: x) == (None, False)


@pytest.mark.slow
def test_the_check_takes_a_random_state_of_its_own(model, make_groups, monkeypatch):
    """Layers that draw random numbers compare alike, and numbers drawn later are what they were."""
    model.model.layers[0].mlp.down_proj = torch.nn.Sequential(
        model.model.layers[0].mlp.down_proj, torch.nn.Dropout(0.5)
    )
    monkeypatch.setattr(TreeScorer, "collate", lambda self, groups, temperature: with_prompts_first(pack(groups)))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert compile_checked(model, make_groups(SHAPES, 0), lambda x: x) == (None, True)
    assert torch.equal(torch.rand(3), expected)


def test_passes_without_gradients_are_not_compiled(model, make_groups):
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph

    batch = random_batch(make_groups, 0)
    expected, _ = log_probs_and_gradients(model, batch)
    compile_layers(model, compiler)
    with torch.no_grad():
        scores = TreeScorer(model)(batch)
    assert not graphs
    torch.testing.assert_close(scores, expected, rtol=0, atol=0)
    TreeScorer(model)(batch)
    assert graphs


@pytest.mark.parametrize(
    "config",
    [
        hf.GPT2Config(n_layer=3, n_embd=8, n_head=2, vocab_size=9),
        hf.GPTNeoXConfig(num_hidden_layers=3, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=9),
        hf.FalconConfig(num_hidden_layers=3, hidden_size=8, num_attention_heads=2, vocab_size=9),
        hf.BloomConfig(n_layer=3, hidden_size=8, n_head=2, vocab_size=9),
        hf.MptConfig(n_layers=3, d_model=8, n_heads=2, vocab_size=9),
        hf.Lfm2Config(
            num_hidden_layers=3, hidden_size=8, num_attention_heads=2, num_key_value_heads=2, intermediate_size=8,
            vocab_size=9, layer_types=["conv", "full_attention", "conv"],
        ),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_the_layers_of_a_model(config):
    with torch.device("meta"):
        assert len(decoder_layers(hf.AutoModelForCausalLM.from_config(config))) == 3


def test_the_layers_of_a_model_on_the_tree_are_all_its_layers(model):
    """Its last layer has a class of its own."""
    layers = decoder_layers(TreeScorer(model))
    assert layers == [*model.model.layers]
    assert len({type(layer) for layer in layers}) == 2


def gradients_in_bfloat16(model, weights, batches):
    """Gradients over micro-batches, with copies of the weights."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16), weights.in_place():
        for batch in batches:
            TreeScorer(model)(batch).sum().backward()
            weights.add_gradients()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_working_weights_give_autocasts_gradients(model, make_groups, monkeypatch):
    """The same bits as when every layer casts its weights, over two micro-batches."""
    monkeypatch.setattr(working_weights, "STACKED", ())
    batches = [pack(make_groups(SHAPES, seed)) for seed in range(2)]
    expected = gradients_in_bfloat16(model, WorkingWeights(model, torch.float32), batches)
    weights = WorkingWeights(model, torch.bfloat16)
    assert len(weights._copies) == 3 * (7 + 4)  # matrices, and attention's biases
    torch.testing.assert_close(gradients_in_bfloat16(model, weights, batches), expected, rtol=0, atol=0)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(copy.copy.grad is None for copy in weights._copies)


def test_stacked_layers_are_as_near_to_float32_as_apart(model, make_groups):
    """Gradients by hidden states are added up in float32 where they are of one product, so errors only shrink."""
    batches = [pack(make_groups(SHAPES, seed)) for seed in range(2)]
    apart = gradients_in_bfloat16(model, WorkingWeights(model, torch.float32), batches)
    weights = WorkingWeights(model, torch.bfloat16)
    assert len(weights._copies) == 3 * 6  # query with key and value, output, gate with up, down; and two biases
    stacked = gradients_in_bfloat16(model, weights, batches)
    model.zero_grad()
    for batch in batches:
        TreeScorer(model)(batch).sum().backward()
    exact = {name: p.grad for name, p in model.named_parameters()}

    def error(gradients):
        return sum(float((gradients[name] - exact[name]).norm() ** 2) for name in exact) ** 0.5

    size = sum(float(gradient.norm() ** 2) for gradient in exact.values()) ** 0.5
    assert 0 < error(apart) < 0.02 * size
    assert error(stacked) < 1.1 * error(apart)
    for name, gradient in stacked.items():
        assert (gradient - exact[name]).norm() < 0.03 * exact[name].norm(), name


def test_a_stacks_parts_are_products_of_their_own_input(model):
    """Whatever the order of calls, also where the inputs differ; nothing of a call is kept after its last part."""
    weights, (layer, *_) = WorkingWeights(model, torch.bfloat16), decoder_layers(model)
    names, inputs = ("q_proj", "k_proj", "v_proj"), torch.randn(2, 5, 32, dtype=torch.bfloat16)
    layers = {name: getattr(layer.self_attn, name) for name in names}
    expected = {name: linear(inputs.float()) for name, linear in layers.items()}
    orders = (names, 0), (names[::-1], 1), (("k_proj", "q_proj"), 0), (("v_proj",), 1)
    with weights.in_place():
        stacked = {name: getattr(layer.self_attn, name) for name in names}
        for order, index in orders:
            for name in order:
                actual = stacked[name](inputs[index]).float()
                torch.testing.assert_close(actual, expected[name][index], rtol=2e-2, atol=2e-2)
        assert stacked["v_proj"].stack.inputs is None
        assert stacked["v_proj"].stack.outputs == ()
    assert {name: getattr(layer.self_attn, name) for name in names} == layers


@pytest.mark.slow
def test_working_weights_compile_a_layer_once_and_the_last_once(model, make_groups):
    counters.clear()
    weights = WorkingWeights(model, torch.bfloat16)
    compile_layers(model, "aot_eager")
    for seed in range(10):
        gradients_in_bfloat16(model, weights, [random_batch(make_groups, seed)])
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]


def test_working_weights_follow_the_float32_weights(model):
    weights, (layer, *_) = WorkingWeights(model, torch.bfloat16), decoder_layers(model)
    with torch.no_grad():
        layer.mlp.up_proj.weight.fill_(0.3)
    with weights.in_place():
        copied = layer.mlp.up_proj(torch.eye(32, dtype=torch.bfloat16))
        assert copied.dtype == torch.bfloat16
        assert float(copied.detach()[0, 0]) == pytest.approx(0.3, rel=2**-8)
    assert layer.mlp.up_proj.weight.dtype == torch.float32
