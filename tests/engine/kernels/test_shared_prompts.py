"""Attention with all prompts first in the row, against a dense mask in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from penchant.data.trees import pack, with_prompts_first
from penchant.engine.kernels import shared_prompts
from penchant.engine.kernels.shared_prompts import Segments, shared_prompt_attention

HEADS, KEY_HEADS, SIZE, SCALE = 6, 2, 8, 0.3


def segments_of(layout) -> Segments:
    return Segments(layout.prompts, layout.groups, layout.candidates, layout.tokens, *layout.longest)


def dense(q: Tensor, k: Tensor, v: Tensor, batch) -> Tensor:
    """Softmax over the keys that a row of the same groups, group after group, lets every token see."""
    layout, row = batch.prompts_first, torch.arange(len(batch.input_ids))
    visible = (row <= row[:, None]) & (row[:, None] < batch.reach)
    visible = visible[layout.order][:, layout.order]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * SCALE
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)


def random_heads(tokens: int) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    heads = [torch.randn(tokens, h, SIZE, dtype=torch.float64) for h in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)]
    return [x.requires_grad_() for x in heads[:3]], heads[3]


@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 70), st.lists(st.integers(1, 20), min_size=1, max_size=16).map(tuple)),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=25, deadline=None)
def test_it_is_the_dense_softmax(make_groups, shapes):
    batch = with_prompts_first(pack(make_groups(shapes, 0)))
    inputs, upstream = random_heads(len(batch.input_ids))
    expected = dense(*inputs, batch)
    actual = shared_prompt_attention(*inputs, segments_of(batch.prompts_first), SCALE)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    pairs = zip(*(torch.autograd.grad(out, inputs, upstream) for out in (actual, expected)), strict=True)
    for gradient, of_dense in pairs:
        torch.testing.assert_close(gradient, of_dense, rtol=1e-11, atol=1e-12)


def test_a_compiled_function_takes_it_whole(make_groups):
    """One graph, whatever the sizes: the operators are opaque, and their sizes symbolic."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda q, k, v, *segments: shared_prompt_attention(q, k, v, Segments(*segments), SCALE).sin(),
        backend=count,
        dynamic=True,
        fullgraph=True,
    )
    for shapes in ([(5, (3, 4)), (9, (2, 2))], [(7, (3, 6, 1)), (2, (8,))], [(31, (3, 2)), (1, (1, 1, 1))]):
        batch = with_prompts_first(pack(make_groups(shapes, 0)))
        inputs, _ = random_heads(len(batch.input_ids))
        whole = compiled(*inputs, *segments_of(batch.prompts_first))
        torch.testing.assert_close(whole, dense(*inputs, batch).sin(), rtol=1e-12, atol=1e-13)
    assert len(graphs) == 1


@pytest.mark.parametrize("modes", [(False, False), (True, True)])
def test_a_gpus_three_calls_of_its_backward(make_groups, monkeypatch, modes):
    """Each gets its rows' log-sum-exps over all that they see, and adds up in a fixed order, whatever is set around."""
    batch, calls = with_prompts_first(pack(make_groups([(4, (2, 3)), (6, (5,))], 0))), []
    segments = segments_of(batch.prompts_first)

    def flash(*, grad_out, query, key, value, out, logsumexp, rng_state, unused, dropout_p, scale, **call_arguments):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert (dropout_p, scale) == (0.0, SCALE)
        ends_q, ends_k, longest_q, longest_k, is_causal = (
            call_arguments.pop(name) for name in ("cum_seq_q", "cum_seq_k", "max_q", "max_k", "is_causal")
        )
        assert not call_arguments
        assert (len(query), len(key)) == (ends_q[-1], ends_k[-1])
        calls.append((longest_q, longest_k, is_causal, logsumexp))
        call = shared_prompts._AttentionCall(
            slice(None), slice(None), (ends_q, ends_k), (longest_q, longest_k), is_causal
        )
        return shared_prompts._EagerAttention.backward(grad_out, query, key, value, out, logsumexp, call, scale)

    inputs, upstream = random_heads(len(batch.input_ids))
    expected = torch.autograd.grad(dense(*inputs, batch), inputs, upstream)
    saved = *inputs, *shared_prompts.forward(shared_prompts._EagerAttention, *inputs, segments, SCALE)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", flash)
    deterministic, warn_only = modes
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    try:
        with torch.no_grad():
            gradients = shared_prompts.backward(shared_prompts._Flash, upstream, saved, segments, SCALE)
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert torch.is_deterministic_algorithms_warn_only_enabled() is warn_only
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
    for gradient, of_dense in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, of_dense, rtol=1e-11, atol=1e-12)
    of_prompts, of_candidates = saved[-2:]
    assert [call[:3] for call in calls] == [(6, 6, True), (5, 6, False), (5, 5, True)]
    for (*_, sums), of_rows in zip(calls, (of_prompts, of_candidates, of_candidates), strict=True):
        assert sums is of_rows
