from __future__ import annotations

import pytest
import torch
from torch import nn

from penchant.data.trees import pack
from penchant.engine.attention import TREE
from penchant.engine.kernels.linear_log_probs import SharedGradient, embed, is_tied
from penchant.engine.tree import TreeScorer


def tied(**settings):
    embedding, head = nn.Embedding(9, 4, **settings), nn.Linear(4, 9, bias=False)
    head.weight = embedding.weight
    return embedding, head


def test_what_counts_as_tied():
    assert is_tied(*tied())
    assert not is_tied(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    assert not is_tied(*tied(max_norm=1.0))
    assert not is_tied(*tied(sparse=True))
    assert not is_tied(*tied(scale_grad_by_freq=True))
    frozen, head = tied()
    frozen.weight.requires_grad_(False)
    assert not is_tied(frozen, head)


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("with_head", [True, False])
def test_rows_are_added_to_the_heads_gradient(padding, with_head):
    """As with the library's embedding, whose gradient is added; and without a gradient of the head."""
    ids, upstream = torch.tensor([1, 3, 3, 8, 1]), torch.randn(5, 4)
    head_gradient = torch.randn(9, 4)
    weight = nn.Parameter(torch.randn(9, 4))
    shared = SharedGradient(head_gradient.clone() if with_head else None)
    waiting = shared.gradient
    rows = embed(ids, weight, padding, shared)
    assert torch.equal(rows, weight[ids])
    rows.backward(upstream)
    other = nn.Embedding(9, 4, padding_idx=padding)
    other(ids).backward(upstream)
    if with_head:
        torch.testing.assert_close(waiting, head_gradient + other.weight.grad)
        assert weight.grad is None
    else:
        torch.testing.assert_close(weight.grad, other.weight.grad)
    assert shared.gradient is None


def test_gradients_add_up_over_micro_batches(build, make_groups):
    model = build("llama-tied")
    model.set_attn_implementation(TREE)
    embedding = model.get_input_embeddings()
    assert is_tied(embedding, model.get_output_embeddings())
    groups = make_groups([(6, (3, 4)), (4, (2, 5))], 0)
    scorer = TreeScorer(model)
    scorer(pack(groups)).sum().backward()
    whole = embedding.weight.grad.clone()
    model.zero_grad()
    for group in groups:
        scorer(pack([group])).sum().backward()
    torch.testing.assert_close(embedding.weight.grad, whole, rtol=1e-4, atol=1e-5)


def test_a_second_backward_of_the_same_graph(build, make_groups):
    model = build("llama-tied")
    model.set_attn_implementation(TREE)
    weight = model.get_input_embeddings().weight
    total = TreeScorer(model)(pack(make_groups([(6, (3, 4))], 0))).sum()
    total.backward(retain_graph=True)
    gradient = weight.grad.clone()
    total.backward()
    torch.testing.assert_close(weight.grad, 2 * gradient, rtol=1e-4, atol=1e-5)
