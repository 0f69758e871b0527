"""The token budget that `training.token_budget: auto` finds for shapes of real models on cards of 24, 80 and 139 GB.

    python benchmarks/budget_table.py [--only NAME ...]

Needs no card and no weights: memory is counted on tensors without data, as `penchant plan` does. A row says the budget,
the tokens of a step, the planned peak and its share of the card, how many memories were counted, and the seconds that
took.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from penchant.config.run import RunConfig, parse_config
from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.planning.budget import CARD_SHARE
from penchant.planning.memory import Memory
from penchant.planning.model import ModelSpec
from penchant.planning.plan import Planner
from penchant.training.automatic import with_training
from penchant.training.inputs import Inputs

CARDS_GB = (24, 80, 139)

SHAPES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "qwen2.5-0.5b": (
        Qwen2Config,
        {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
         "intermediate_size": 4864, "vocab_size": 151_936, "tie_word_embeddings": True},
    ),
    "qwen2.5-1.5b": (
        Qwen2Config,
        {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
         "intermediate_size": 8960, "vocab_size": 151_936, "tie_word_embeddings": True},
    ),
    "qwen2.5-3b": (
        Qwen2Config,
        {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
         "intermediate_size": 11_008, "vocab_size": 151_936, "tie_word_embeddings": True},
    ),
    "llama-3.1-8b": (
        LlamaConfig,
        {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 14_336, "vocab_size": 128_256, "tie_word_embeddings": False},
    ),
}  # fmt: skip
RUNS = {
    "0.5B": ("qwen2.5-0.5b", {}),
    "0.5B float32": ("qwen2.5-0.5b", {"training": {"dtype": "float32"}}),
    "1.5B": ("qwen2.5-1.5b", {}),
    "3B": ("qwen2.5-3b", {}),
    "8B": ("llama-3.1-8b", {}),
    "8B LoRA": ("llama-3.1-8b", {"lora": {"rank": 16}}),
    "8B LoRA, checkpointing": (
        "llama-3.1-8b",
        {"lora": {"rank": 16}, "training": {"gradient_checkpointing": True}},
    ),
}
PROMPT, RESPONSE, BATCH = (128, 512), (64, 512), 64


def groups(count: int) -> list[TokenizedGroup]:
    """Pairs of uneven lengths."""
    draw = np.random.default_rng(0)

    def ids(low: int, high: int) -> np.ndarray:
        return np.ones(draw.integers(low, high, endpoint=True), np.int64)

    pair = PreferenceGroup("", ("a", "b"), scores=(1.0, 0.0), id="0")
    return [TokenizedGroup(ids(*PROMPT), (ids(*RESPONSE), ids(*RESPONSE)), pair) for _ in range(count)]


class CountingPlanner(Planner):
    """A planner that counts its memories."""

    plans = 0

    def memory(self, config: RunConfig, roughly: bool = False) -> Memory:
        self.plans += 1
        return super().memory(config, roughly)


def planner(run: str, card_gb: int) -> CountingPlanner:
    shape, changes = RUNS[run]
    kind, values = SHAPES[shape]
    settings = {"batch_size": BATCH, "dtype": "bfloat16", **changes.get("training", {})}
    described = {"model": shape, "data": "-", "output": "-", "objective": {"name": "dpo"}}
    config = parse_config({**described, **changes, "training": settings}, run)
    spec = ModelSpec(config, kind(**values, max_position_embeddings=4096), tokenizer=None)
    inputs = Inputs(groups(4 * BATCH), groups(BATCH), [], "")
    return CountingPlanner(config, inputs, 4096, spec, torch.device("cuda", 0), card_gb << 30, 0)


def take_a_card_for_granted() -> None:
    """Let autocast act on tensors of a card that this machine does not have."""
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True


def main() -> None:
    take_a_card_for_granted()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(RUNS))
    print(f"{'run':24}{'card':>7}{'budget':>9}{'step':>9}{'peak GB':>9}{'share':>7}{'plans':>9}{'seconds':>9}")
    for run in parser.parse_args().only:
        for card_gb in CARDS_GB:
            plan = planner(run, card_gb)
            start = time.perf_counter()
            budget = plan.fitting_budget()
            seconds, plans = time.perf_counter() - start, plan.plans
            peak = plan.memory(with_training(plan.config, token_budget=budget)).peak / 2**30
            step = max(plan.workload(with_training(plan.config, token_budget=10**9)).step_tokens)
            fits = "" if plan.shortage is None else "  not even the longest group fits"
            assert plan.shortage is not None or peak <= CARD_SHARE * card_gb
            numbers = f"{budget:9,}{step:9,}{peak:9.1f}{peak / card_gb:7.0%}{plans:9}{seconds:9.1f}"
            print(f"{run:24}{card_gb:>4} GB{numbers}{fits}", flush=True)


if __name__ == "__main__":
    main()
