"""The tree against the plain padded forward, in float64, for every family."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, LlamaConfig, MistralConfig

from penchant.data.trees import pack, with_prompts_first
from penchant.engine.attention import TREE, UnsupportedAttention, tree_attention
from penchant.engine.kernels.shared_prompts import is_flash_size
from penchant.engine.tree import TreeScorer, reorder_for_attention, use_tree
from penchant.engine.tree_plan import GatheredSegments, TreePlan
from penchant.recipes.recommend.catalogue import pack_trie

SHAPES = {
    "pairs": [(9, (4, 7)), (30, (12, 12))],
    "one candidate": [(5, (6,)), (1, (9,))],
    "many candidates": [(11, (3, 1, 8, 2, 5)), (40, tuple(range(1, 17)))],
    "unequal counts": [(1, (3,)), (17, (1, 2, 9, 5, 2)), (2, (4, 4))],
    "long prompt": [(400, (20, 3))],
}


def _assert_equal(results):
    (expected, expected_gradients), (actual, actual_gradients) = results
    assert actual.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)
    assert actual_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        error = (actual_gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-30)
        assert error < 1e-8 or gradient.norm() < 1e-12, f"{name}: {error:.1e}"


@pytest.mark.parametrize("arrange", [None, with_prompts_first], ids=["groups", "prompts first"])
@pytest.mark.parametrize("shape", SHAPES)
def test_tree_equals_padded_forward(family, shape, arrange, build, make_groups, score_both_ways):
    model = build(family).double()
    batch = pack(make_groups(SHAPES[shape], 1))
    weights = torch.randn(batch.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    _assert_equal(score_both_ways(model, batch, weights, arrange and arrange(batch)))


@pytest.mark.slow_but("llama")
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 400), st.lists(st.integers(1, 12), min_size=1, max_size=16).map(tuple)),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tree_equals_padded_forward_on_any_shape(family, build, make_groups, score_both_ways, shapes, seed):
    model = build(family).double()
    batch = pack(make_groups(shapes, seed))
    weights = torch.randn(batch.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    _assert_equal(score_both_ways(model, batch, weights, with_prompts_first(batch) if seed % 2 else batch))


def test_packing_changes_nothing(family, build, make_groups, all_float64):
    model = build(family).double()
    use_tree(model)
    groups = make_groups(SHAPES["unequal counts"], 3)
    with torch.no_grad(), all_float64():
        together = TreeScorer(model)(pack(groups))
        for row, group in enumerate(groups):
            alone = TreeScorer(model)(pack([group]))[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-12, atol=0)


def test_order_of_candidates_permutes_log_probs(family, build, make_groups, all_float64):
    model = build(family).double()
    model.set_attn_implementation(TREE)
    (group,) = make_groups([(8, (5, 2, 7))], 4)
    reversed_group = type(group)(group.prompt, group.responses[::-1], group.group)
    with torch.no_grad(), all_float64():
        forward, backward = (TreeScorer(model)(pack([g]))[0] for g in (group, reversed_group))
    torch.testing.assert_close(forward, backward.flip(0), rtol=1e-12, atol=0)


def test_gradient_checkpointing_changes_nothing(build, make_groups):
    gradients = []
    for checkpointing in (False, True):
        model = build("llama").train()
        use_tree(model)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        TreeScorer(model)(pack(make_groups(SHAPES["pairs"], 5))).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_two_models_alive_at_once_do_not_mix(build, make_groups):
    checkpointed, plain = build("llama"), build("llama")
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(0.5)
    batches = [pack(make_groups(SHAPES["pairs"], seed)) for seed in (6, 7)]
    alone = []
    for model, batch in zip((checkpointed, plain), batches, strict=True):
        use_tree(model)
        alone.append(TreeScorer(model)(batch))
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed.train()
    one = TreeScorer(checkpointed)(batches[0])
    two = TreeScorer(plain)(batches[1])
    (one.sum() + two.sum()).backward()
    assert torch.equal(one, alone[0])
    assert torch.equal(two, alone[1])


def test_first_response_token_counts(build, make_groups):
    """The token after the prompt is predicted from the prompt's last position (an off-by-one elsewhere)."""
    model = build("llama").double()
    (group,) = make_groups([(6, (1,))], 8)
    logits = model(torch.from_numpy(group.prompt)[None]).logits[0, -1]
    model.set_attn_implementation(TREE)
    actual = TreeScorer(model)(pack([group]))[0, 0]
    expected = logits.log_softmax(-1)[int(group.responses[0][0])]
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"position_bias": torch.zeros(1)}, "position_bias"), ({"is_causal": False}, "not causal")],
)
def test_attention_refuses_what_it_does_not_know(make_groups, arguments, says):
    batch = pack(make_groups([(2, (2, 1))], 0))
    heads = torch.zeros(1, 2, 5, 4)
    with pytest.raises(UnsupportedAttention, match=says):
        tree_attention(torch.nn.Module(), heads, heads, heads, None, tree=TreePlan(batch), **arguments)


def test_sinks_and_soft_caps_equal_attention_written_out(make_groups):
    batch = pack(make_groups([(3, (2, 2))], 0))
    plan = TreePlan(batch)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 7, 4, dtype=torch.float64) for _ in range(3))
    sinks = torch.randn(2, dtype=torch.float64)
    actual, _ = tree_attention(torch.nn.Module(), q, k, v, None, tree=plan, softcap=2.0, s_aux=sinks)
    mask = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0, 1, 0],
            [1, 1, 1, 0, 0, 1, 1],
        ],
        dtype=torch.bool,
    )
    scores = 2.0 * torch.tanh(q @ k.transpose(2, 3) / 2.0 / 2.0)
    weights = scores.masked_fill(~mask, float("-inf")).exp()
    weights = weights / (weights.sum(-1, keepdim=True) + sinks.exp().view(1, 2, 1, 1))
    torch.testing.assert_close(actual, (weights @ v).transpose(1, 2), rtol=1e-12, atol=1e-14)


def written_out(q, k, v, ends_q, ends_k, longest_q, longest_k, scale, left, right):
    """The variable-length kernel's attention: causal from the bottom right, `left` keys before the query's own."""
    out = torch.empty_like(q)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    for a, b, c, d in zip(ends_q[:-1], ends_q[1:], ends_k[:-1], ends_k[1:], strict=True):
        assert b - a <= longest_q
        assert d - c <= longest_k
        assert right == 0
        gap = (torch.arange(b - a) + (d - c) - (b - a))[:, None] - torch.arange(d - c)[None]
        visible = (gap >= 0) & ((gap <= left) | torch.tensor(left < 0))
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * scale
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        out[a:b] = torch.einsum("hqk,khd->qhd", weights, v[c:d])
    return out


def newest_kernel(q, k, v, eq, ek, lq, lk, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    assert enable_gqa == (q.shape[1] != k.shape[1])
    return written_out(q, k, v, eq, ek, lq, lk, scale, *window_size)


def oldest_kernel(q, k, v, eq, ek, lq, lk, *, scale=None, window_size=(-1, -1)):
    return written_out(q, k, v, eq, ek, lq, lk, scale, *window_size)


@pytest.mark.parametrize("kernel", [newest_kernel, oldest_kernel])
@pytest.mark.parametrize("window", [None, 3])
def test_variable_length_path_equals_masked_path(make_groups, monkeypatch, kernel, window):
    """The CUDA path, its kernel replaced by attention written out: gathered keys, lengths and windows are right."""
    from penchant.engine import attention

    monkeypatch.setattr(attention, "_varlen_attn", lambda: kernel)
    batch = pack(make_groups([(5, (3, 6)), (1, (2,)), (9, (4, 1, 1))], 0))
    plan = TreePlan(batch)
    torch.manual_seed(0)
    tokens = len(batch.input_ids)
    q = torch.randn(1, 4, tokens, 8, dtype=torch.float64)
    k, v = (torch.randn(1, 2, tokens, 8, dtype=torch.float64) for _ in range(2))
    masked = attention._masked(q, k, v, plan, window, 0.3)
    segments = GatheredSegments.of_row(batch.branches, torch.device("cpu"))
    variable = attention._variable_length(q, k, v, segments, window, 0.3)
    torch.testing.assert_close(variable, masked, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "of_values", "dtype", "accepted"),
    [
        (64, 64, torch.bfloat16, True),
        (256, 256, torch.float16, True),
        (12, 6, torch.bfloat16, False),
        (20, 20, torch.bfloat16, False),
        (264, 264, torch.bfloat16, False),
        (64, 64, torch.float32, False),
    ],
)
def test_the_kernel_gets_no_heads_it_refuses(size, of_values, dtype, accepted):
    query, value = (torch.zeros(1, 1, head_size, dtype=dtype) for head_size in (size, of_values))
    assert is_flash_size(query, value) == accepted


def test_lora_gradients_equal_padded_forward(build, make_groups, score_both_ways):
    from peft import LoraConfig, get_peft_model

    model = build("llama").double()
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).double()
    assert wrapped is not model
    batch = pack(make_groups(SHAPES["pairs"], 9))
    results = score_both_ways(model, batch, torch.ones(batch.shape, dtype=torch.float64))
    assert all("lora" in name for name in results[0][1])
    _assert_equal(copy.copy(results))


@pytest.mark.parametrize("prompt", [1, 5, 90])
def test_a_trie_equals_the_tree(family, prompt, build, make_groups, all_float64):
    """Candidates with common beginnings, in one row that holds these once: log-probs and gradients."""
    model = build(family).double()
    use_tree(model)
    (group,) = make_groups([(prompt, (60, 9, 9, 4, 2, 30))], 8)
    one, two, three, *further_responses = group.responses
    responses = (one, one[:40], np.concatenate([one[:25], two]), np.concatenate([two[:5], three]), *further_responses)
    group = replace(group, responses=(*responses, two))
    weights = torch.randn(len(group.responses), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    results = []
    for batch in (pack([group]), pack_trie(group)):
        model.zero_grad()
        with all_float64():
            log_probs = TreeScorer(model)(batch)
            (log_probs * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((log_probs.detach(), gradients))
    assert len(pack_trie(group).input_ids) < len(pack([group]).input_ids) - 60
    _assert_equal(results)


@pytest.mark.parametrize(
    ("config", "device", "capability", "prompts_first"),
    [
        (LlamaConfig(), "cuda", (9, 0), True),
        (LlamaConfig(), "cuda", (8, 0), True),
        (LlamaConfig(), "cuda", (7, 5), False),
        (LlamaConfig(), "cpu", (9, 0), False),
        (LlamaConfig(), "mps", (9, 0), False),
        # The longest prompt and candidate have 42 tokens.
        (MistralConfig(sliding_window=41), "cuda", (9, 0), False),
        (MistralConfig(sliding_window=42), "cuda", (9, 0), True),
        (MistralConfig(sliding_window=None), "cuda", (9, 0), True),
        (Gemma2Config(sliding_window=64), "cuda", (9, 0), False),
        (Gemma2Config(sliding_window=64, attn_logit_softcapping=None), "cuda", (9, 0), True),
    ],
)
def test_prompts_come_first_where_flash_attention_takes_them(
    make_groups, monkeypatch, config, device, capability, prompts_first
):
    """Not with a soft-cap or a window narrower than a sequence, on an old card or on no card."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    model = SimpleNamespace(config=config, device=torch.device(device))
    batch = reorder_for_attention(pack(make_groups(SHAPES["pairs"], 0)), model)
    assert (batch.prompts_first is not None) is prompts_first
