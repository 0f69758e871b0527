from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penchant.data.trees import pack
from penchant.engine import attention, tree_plan
from penchant.engine.tree_plan import TreePlan


def seen_by_hand(shapes, window):
    """Visible keys [T, T] bool by query, from the definition: the query's branch up to it, and the prompt, within the
    window of positions."""
    owner, position = [], []
    for g, (prompt, responses) in enumerate(shapes):
        owner += [(g, 0)] * prompt
        position += range(prompt)
        for k, n in enumerate(responses):
            owner += [(g, k + 1)] * n
            position += range(prompt, prompt + n)
    table = torch.zeros(len(owner), len(owner), dtype=torch.bool)
    for q, (group, branch) in enumerate(owner):
        for k, (other, theirs) in enumerate(owner):
            gap = position[q] - position[k]
            table[q, k] = group == other and theirs in (0, branch) and gap >= 0 and (window is None or gap < window)
    return table


def plan_of(make_groups, shapes):
    return TreePlan(pack(make_groups(shapes, 0)))


def seen_by_tiles(tiling):
    """Visible keys [T, T] bool by the tiles, which must hold every query once and in order."""
    total = tiling.tiles[-1].outputs[1]
    table = torch.zeros(total, total, dtype=torch.bool)
    order = []
    for number, tile in enumerate(tiling.tiles):
        queries, keys = (torch.cat([torch.arange(*span) for span in spans]) for spans in (tile.queries, tile.keys))
        bias = tiling.bias(number, torch.float64)
        assert bias.shape == (len(queries), len(keys))
        if tile.causal:
            assert torch.equal(bias == 0, torch.ones(len(queries), len(keys)).tril().bool())
        output_range = range(*tile.outputs)
        assert queries[-len(output_range) :].tolist() == list(output_range)
        for row, query in zip(bias[-len(output_range) :], output_range, strict=True):
            order.append(query)
            table[query, keys[row == 0]] = True
    assert order == list(range(total))
    return table


def length(spans):
    return sum(end - start for start, end in spans)


SHAPES = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 14), min_size=1, max_size=5).map(tuple)),
    min_size=1,
    max_size=3,
)


@pytest.mark.slow_but("thin masks")
@pytest.mark.parametrize("limit", [1 << 24, 60], ids=["thin masks", "masks too large"])
@settings(max_examples=100, deadline=None)
@example(shapes=[(1, (1, 1, 1, 1, 1, 4, 12, 12, 12, 12, 9))], window=8, block=64)
@given(shapes=SHAPES, window=st.sampled_from([None, 1, 3, 8, 40]), block=st.sampled_from([1, 4, 16, 64]))
def test_tiles_see_what_the_tree_says(make_groups, limit, shapes, window, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_plan, "BLOCK", block)
        patch.setattr(tree_plan, "MASK_ELEMENTS", limit)
        tiling = plan_of(make_groups, shapes).tiling(window)
        assert torch.equal(seen_by_tiles(tiling), seen_by_hand(shapes, window))


@pytest.mark.parametrize("limit", [1 << 24, 60], ids=["thin masks", "masks too large"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("attend", [attention._on_cpu, attention._masked])
def test_attention_and_its_gradients_equal_attention_written_out(make_groups, monkeypatch, attend, window, limit):
    monkeypatch.setattr(tree_plan, "BLOCK", 4)
    monkeypatch.setattr(tree_plan, "MASK_ELEMENTS", limit)
    shapes = [(5, (3, 9)), (1, (2,)), (9, (4, 1, 1, 12))]
    visible = seen_by_hand(shapes, window)
    torch.manual_seed(0)
    q = torch.randn(1, 4, len(visible), 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, 2, len(visible), 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    plan = plan_of(make_groups, shapes)
    actual = attend(q, k, v, plan, window, 0.3)
    scores = q @ k.repeat_interleave(2, 1).transpose(2, 3) * 0.3
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    expected = (weights @ v.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((out * upstream).sum(), (q, k, v)) for out in (actual, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("attend", [attention._on_cpu, attention._masked])
def test_the_last_layer_attends_for_what_is_read(make_groups, monkeypatch, attend, window):
    """Only the last token of a prompt is computed; forward and backward equal the full layer's outputs there."""
    monkeypatch.setattr(tree_plan, "BLOCK", 4)
    shapes = [(5, (3, 9)), (1, (2,)), (9, (4, 1, 1, 12)), (4, (7,))]
    plan = plan_of(make_groups, shapes)
    torch.manual_seed(0)
    tokens = sum(prompt + sum(responses) for prompt, responses in shapes)
    q = torch.randn(1, 4, tokens, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, 2, tokens, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    read = torch.ones(tokens, dtype=torch.bool)
    start = 0
    for prompt, responses in shapes:
        read[start : start + prompt - 1] = False
        start += prompt + sum(responses)
    whole, part = (attend(q, k, v, row_plan, window, 0.3) for row_plan in (plan, plan.last_layer_plan))
    torch.testing.assert_close(part[:, read], whole[:, read], rtol=1e-12, atol=0)
    assert not part[:, ~read].any()
    upstream = torch.randn_like(whole) * read[None, :, None, None]
    ours, theirs = (torch.autograd.grad((out * upstream).sum(), (q, k, v)) for out in (part, whole))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_responses_and_the_last_of_prompts_are_read(make_groups):
    batch = pack(make_groups([(5, (3, 4)), (6, (2,))], 0))
    read = [4, 5, 6, 7, 8, 9, 10, 11, 17, 18, 19]
    assert TreePlan(batch).read_indices.tolist() == read
    assert TreePlan(batch.pad_to_multiple(8)).read_indices.tolist() == read
    filled = TreePlan(batch, 4).read_indices.tolist()
    assert len(filled) == 12
    assert filled == sorted({*read, *filled})
    assert TreePlan(batch, 64).read_indices.tolist() == list(range(20))


def test_half_precision_attends_in_float32_on_the_cpu(make_groups):
    """Its backward in half precision is several times slower there; under autocast queries come in float32."""
    shapes = [(5, (3, 9)), (9, (4, 1))]
    plan = plan_of(make_groups, shapes)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, len(seen_by_hand(shapes, None)), 8).bfloat16() for _ in range(3))
    expected = attention._on_cpu(q.float(), k.float(), v.float(), plan, None, 0.3).bfloat16()
    assert torch.equal(attention._on_cpu(q, k, v, plan, None, 0.3), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attention._on_cpu(q.float(), k.float(), v, plan, None, 0.3), expected)


def test_scores_computed_grow_with_what_is_seen(make_groups):
    """64 candidates of 100 tokens: their pairs cost nothing; nor do the masks of 8 short ones to a prompt of 3,000."""
    for shape, max_scores in (((50, (100,) * 64), 50**2 + 64 * 100 * 150), ((3000, (10,) * 8), 3000**2 + 80 * 3070)):
        tiling = plan_of(make_groups, [shape]).tiling(None)
        sizes = [[length(side) for side in (t.queries, t.keys)] for t in tiling.tiles]
        assert sum(queries * keys for queries, keys in sizes) <= max_scores


def test_a_window_keeps_keys_near(make_groups):
    """Of a prompt of 2,000 tokens with a window of 100, no query's tile holds more than 200 keys."""
    tiling = plan_of(make_groups, [(2000, (300, 20))]).tiling(100)
    assert max(length(tile.keys) for tile in tiling.tiles) <= 200


def test_a_window_no_sequence_reaches_is_none(make_groups):
    plan = plan_of(make_groups, [(5, (3, 4))])
    assert plan.tiling(9) is plan.tiling(None)
    assert plan.tiling(8) is not plan.tiling(None)


def test_biases_are_made_once(make_groups):
    """All layers read the same numbers: none are stored twice for the backward."""
    tiling = plan_of(make_groups, [(5, (3, 4))]).tiling(None)
    assert tiling.bias(1, torch.float32) is tiling.bias(1, torch.float32)
