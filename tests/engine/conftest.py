"""Tiny random models of each family, and groups of random tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import TreeBatch
from penchant.engine.attention import TREE, tree_attention
from penchant.engine.kernels import compiled
from penchant.engine.padded import PaddedScorer
from penchant.engine.tree import TreeScorer, use_tree

hf.AttentionInterface.register(TREE, tree_attention)

VOCABULARY = 61
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_OPT = {name: value for name, value in _COMMON.items() if name != "intermediate_size"}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}

CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**_GROUPED),
    "llama-tied": lambda: hf.LlamaConfig(**_GROUPED, tie_word_embeddings=True),
    "qwen2": lambda: hf.Qwen2Config(**_GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**_GROUPED, head_dim=8),
    "mistral": lambda: hf.MistralConfig(**_GROUPED, sliding_window=None),
    "mistral-window": lambda: hf.MistralConfig(**_GROUPED, sliding_window=7),
    "gemma2": lambda: hf.Gemma2Config(**_GROUPED, head_dim=8, sliding_window=7),
    "gemma3": lambda: hf.Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=7, sliding_window_pattern=2),
    "phi3": lambda: hf.Phi3Config(**_GROUPED, sliding_window=9),
    "olmo2": lambda: hf.Olmo2Config(**_GROUPED),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**_COMMON),
    "gpt2": lambda: hf.GPT2Config(**_GPT2, n_positions=512),
    "opt": lambda: hf.OPTConfig(**_OPT, ffn_dim=48, word_embed_proj_dim=16),
    "smollm3": lambda: hf.SmolLM3Config(**_GROUPED),
}
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
EXPERTS = {
    "mixtral": lambda: hf.MixtralConfig(**_GROUPED, num_local_experts=4),
    "qwen3-moe": lambda: hf.Qwen3MoeConfig(**_GROUPED, **_ROUTED, num_experts=4, head_dim=8),
    "gpt-oss": lambda: hf.GptOssConfig(**_GROUPED, num_local_experts=4, head_dim=8, rope_scaling=None),
    "deepseek-v3": lambda: hf.DeepseekV3Config(
        **_COMMON, **_ROUTED, **_LATENT, n_routed_experts=4, n_group=1, topk_group=1, num_key_value_heads=4
    ),
}
REFUSED = {
    "bloom": lambda: hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "gpt-j": lambda: hf.GPTJConfig(**{**_GPT2, "bos_token_id": 1, "eos_token_id": 2}, rotary_dim=4, n_positions=512),
    "mamba": lambda: hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
}

Build = Callable[[str], hf.PreTrainedModel]
MakeGroups = Callable[[Sequence[tuple[int, Sequence[int]]], int], list[TokenizedGroup]]


@pytest.fixture(params=["a core's passes", "a GPU's formulas"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's code, and the formulas that are compiled on a GPU, here uncompiled."""
    if request.param == "a GPU's formulas":
        monkeypatch.setattr(compiled, "use_compiled", lambda x: True)


@pytest.fixture(params=sorted(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    """Every family that the tree is proven for."""
    return request.param


@pytest.fixture(params=sorted(EXPERTS))
def family_of_experts(request: pytest.FixtureRequest) -> str:
    """Every family with a router."""
    return request.param


@pytest.fixture(params=sorted(REFUSED))
def refused_family(request: pytest.FixtureRequest) -> str:
    """Every family that the tree is refused for."""
    return request.param


@pytest.fixture(scope="session")
def config_of() -> Callable[[str], hf.PretrainedConfig]:
    """A tiny configuration of a family."""
    return lambda name: CONFIGS[name]()


@pytest.fixture(scope="session")
def build() -> Build:
    """A tiny random model of a family, with weights large enough that attention is not near uniform."""

    def make(name: str) -> hf.PreTrainedModel:
        torch.manual_seed(0)
        config = {**CONFIGS, **EXPERTS, **REFUSED}[name]()
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(8.0)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_groups() -> MakeGroups:
    """Groups of random ids: shapes are (tokens of the prompt, tokens of each response)."""

    def make(shapes: Sequence[tuple[int, Sequence[int]]], seed: int = 0) -> list[TokenizedGroup]:
        draw = np.random.default_rng(seed)
        return [
            TokenizedGroup(
                draw.integers(3, VOCABULARY, prompt),
                tuple(draw.integers(3, VOCABULARY, n) for n in responses),
                PreferenceGroup("x", ("y",) * len(responses), preferred=0, id=str(number)),
            )
            for number, (prompt, responses) in enumerate(shapes)
        ]

    return make


@pytest.fixture
def all_float64() -> Callable[[], AbstractContextManager[None]]:
    """Make model code that computes norms, rotations or softmax in float32 use float64 there too.

    Without it a float64 model has float32 rounding inside, and agreement beyond 1e-7 says nothing.
    """

    @contextmanager
    def patched() -> Iterator[None]:
        single, to_single = torch.float32, torch.Tensor.float
        # Models use either of the dtype's two names.
        torch.float32 = torch.float = torch.float64
        torch.Tensor.float = torch.Tensor.double
        try:
            yield
        finally:
            torch.float32 = torch.float = single
            torch.Tensor.float = to_single

    return patched


@pytest.fixture
def score_both_ways(all_float64: Callable[[], AbstractContextManager[None]]) -> Callable[..., list[Any]]:
    """Score a batch by the padded forward and by the tree, in float64.

    Returns for each way the log-probs [G, K] and the gradients, by parameter, of their sum with weights [G, K]. The
    tree may get the batch in another order of tokens.
    """

    def score(
        model: hf.PreTrainedModel, batch: TreeBatch, weights: torch.Tensor, tree_batch: TreeBatch | None = None
    ) -> list[Any]:
        results = []
        for scorer_class, row in ((PaddedScorer, batch), (TreeScorer, tree_batch or batch)):
            if scorer_class is TreeScorer:
                use_tree(model)
            else:
                model.set_attn_implementation("eager")
            model.zero_grad()
            with all_float64():
                log_probs = scorer_class(model)(row)
                (log_probs * weights).sum().backward()
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            results.append((log_probs.detach().clone(), gradients))
        return results

    return score
