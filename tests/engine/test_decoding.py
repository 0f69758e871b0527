"""Rows that join others while these generate: logits as for each row alone, for any attention and cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen3NextConfig,
)

from penchant.engine.decoding import CachedRows, UncachedRows, joinable_cache, next_logits, read_joinable

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
ATTENTION = {**SMALL, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**ATTENTION),
    "mistral, a window of 4": MistralConfig(**ATTENTION, sliding_window=4),
    "gemma3, a window in every second layer": Gemma3TextConfig(
        **ATTENTION, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2, learned positions": GPT2Config(vocab_size=50, n_positions=24, n_embd=32, n_layer=2, n_head=4),
    "opt, positions of its own": OPTConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32
    ),
    "bloom, alibi": BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4),
    "qwen3-next, linear attention": Qwen3NextConfig(
        **ATTENTION,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "mamba, no cache to share": MambaConfig(**SMALL, state_size=4),
}


@pytest.fixture(params=CONFIGS, scope="module")
def model(request):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def ids(generator: np.random.Generator, number: int) -> np.ndarray:
    return generator.integers(3, 50, number)


@torch.no_grad()
def test_rows_that_join_and_leave_read_as_each_alone(model) -> None:
    """Rows of 2 to 9 tokens join in three turns, beside rows that are shorter or longer, and leave in between."""
    generator = np.random.default_rng(0)
    turns = [[ids(generator, 2)], [ids(generator, 9), ids(generator, 3)], [ids(generator, 4), ids(generator, 2)]]
    rows: list[list[int]] = []
    state: CachedRows | UncachedRows | None = None
    for prompts in turns:
        newcomers = read_joinable(model, prompts)
        rows += [prompt.tolist() for prompt in prompts]
        if state is None:
            state = newcomers
        else:
            state.join(newcomers)
        for _ in range(4):
            for row, logits in zip(rows, state.logits, strict=True):
                torch.testing.assert_close(logits, next_logits(model, torch.tensor(row)), rtol=1e-4, atol=1e-4)
            tokens = ids(generator, len(rows)).tolist()
            state.feed(tokens)
            for row, token in zip(rows, tokens, strict=True):
                row.append(token)
        # The longest row leaves: no row uses its columns any more.
        leaving = max(range(len(rows)), key=lambda index: len(rows[index]))
        if len(rows) > 1:
            staying = [index for index in range(len(rows)) if index != leaving]
            rows = [rows[index] for index in staying]
            state.keep(staying)
            state.trim()
            if isinstance(state, CachedRows):
                assert state.mask.shape[1] == max(map(len, rows))
                assert state.padding == [state.mask.shape[1] - len(row) for row in rows]
                assert state.padding == (state.mask == 0).sum(1).tolist()
    assert len(rows) == 3
    for row, logits in zip(rows, state.logits, strict=True):
        torch.testing.assert_close(logits, next_logits(model, torch.tensor(row)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_prompt_that_is_kept_twice_is_two_rows(model) -> None:
    state = read_joinable(model, [ids(np.random.default_rng(1), 5)])
    state.keep([0, 0])
    torch.testing.assert_close(state.logits[0], state.logits[1])
    state.feed([7, 8])
    assert not torch.allclose(state.logits[0], state.logits[1])


def test_only_a_model_without_a_cache_to_share_is_read_anew() -> None:
    for name, config in CONFIGS.items():
        cache = joinable_cache(AutoModelForCausalLM.from_config(config))
        assert (cache is None) == (name == "mamba, no cache to share"), name
