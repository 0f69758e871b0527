"""Unusual shapes: memory grows no faster than tokens. Counted on tensors without data, so nothing is slow.

Long prompts, long responses, many candidates, windows, large vocabularies. That the numbers are right is test_tree's.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from penchant.data.trees import pack
from penchant.engine.attention import TREE, tree_attention
from penchant.engine.kernels import linear_log_probs as linear
from penchant.engine.kernels.output_layer import CPU_RULE
from penchant.engine.memory import replace_tensors, track_memory
from penchant.engine.tree import TreeScorer

CPU = torch.device("cpu")


def peak(make_groups, shapes, vocabulary=1000, window=None) -> int:
    """Bytes a training step's forward and backward add to the weights, at their highest."""
    from transformers import AttentionInterface

    AttentionInterface.register(TREE, tree_attention)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1 << 17,
    }
    config = LlamaConfig(**sizes) if window is None else MistralConfig(**sizes, sliding_window=window)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation(TREE)
    groups = make_groups(shapes, 0)
    with track_memory() as tracker:
        scorer = TreeScorer(model)
        replace_tensors(scorer, CPU)
        start_bytes = tracker.live
        scorer(pack(groups)).sum().backward()
        return tracker.peak - start_bytes


@pytest.mark.slow_but("long prompt", "sliding")
@pytest.mark.parametrize(
    ("small", "large", "window"),
    [
        ((8_000, (50, 75)), (32_000, (50, 75)), None),
        ((100, (2_000, 4_000)), (400, (8_000, 16_000)), None),
        ((100, (300,) * 16), (100, (300,) * 64), None),
        ((400, (10,) * 16), (400, (10,) * 64), None),
        ((8_000, (2_000, 50)), (32_000, (8_000, 200)), 512),
    ],
    ids=["long prompt", "long responses", "64 candidates", "64 short candidates", "sliding window"],
)
def test_four_times_as_much_takes_four_times_the_memory(make_groups, small, large, window):
    assert peak(make_groups, [large], window=window) <= 4.3 * peak(make_groups, [small], window=window)


def test_a_large_vocabulary_keeps_no_more_logits_than_allowed(make_groups, monkeypatch):
    """20,000 words in 14 blocks: where half of 600 tokens' logits may be kept, six are."""
    shape, words = (100, (300, 300)), 20_000
    rule = replace(CPU_RULE, block_elements=1 << 20)
    monkeypatch.setattr(linear, "block_rule", lambda device, dtype: rule)
    whole = peak(make_groups, [shape], words)
    rule = replace(rule, kept_elements=600 * words // 2)
    assert whole - peak(make_groups, [shape], words) == pytest.approx(8 * 4 << 20, rel=0.05)
