"""The token budget that `training.token_budget: auto` finds for shapes of real models on cards of 24, 80 and 139 GB.

    python benchmarks/budget_table.py [--only NAME ...]

Needs no card and no weights: memory is counted on tensors without data, as `penchant plan` does. A row says the budget,
the tokens of a step, the planned peak and its share of the card, how many memories were counted, and the seconds that
took.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "speed")]

import fake_card  # noqa: E402

if __name__ == "__main__":
    fake_card.load()  # before torch is imported by anything

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import PretrainedConfig, Qwen2Config  # noqa: E402
from workloads import LLAMA, llama_config  # noqa: E402

from penchant.config.run import (  # noqa: E402
    RunConfig,
    parse_config,
    with_training,
)
from penchant.data.groups import PreferenceGroup  # noqa: E402
from penchant.data.tokenized import TokenizedGroup  # noqa: E402
from penchant.planning.memory import Memory  # noqa: E402
from penchant.planning.model import ModelSpec  # noqa: E402
from penchant.planning.plan import Planner  # noqa: E402
from penchant.planning.work import CARD_SHARE  # noqa: E402
from penchant.training.inputs import Inputs  # noqa: E402

CARDS_GB = (24, 80, 139)


def qwen(hidden: int, layers: int, heads: int, intermediate: int) -> PretrainedConfig:
    """The configuration of a Qwen2.5 of these sizes."""
    return Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        intermediate_size=intermediate,
        vocab_size=151_936,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )


LORA = {"lora": {"rank": 16}}
RUNS: dict[str, tuple[PretrainedConfig, dict[str, Any]]] = {
    "0.5B": (qwen(896, 24, 14, 4864), {}),
    "0.5B float32": (qwen(896, 24, 14, 4864), {"training": {"dtype": "float32"}}),
    "1.5B": (qwen(1536, 28, 12, 8960), {}),
    "3B": (qwen(2048, 36, 16, 11_008), {}),
    "8B": (llama_config(LLAMA), {}),
    "8B LoRA": (llama_config(LLAMA), LORA),
    "8B LoRA, checkpointing": (llama_config(LLAMA), {**LORA, "training": {"gradient_checkpointing": True}}),
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

    def memory(self, config: RunConfig, approximate: bool = False) -> Memory:
        self.plans += 1
        return super().memory(config, approximate)


def planner(run: str, card_gb: int) -> CountingPlanner:
    shape, changes = RUNS[run]
    settings = {"batch_size": BATCH, "dtype": "bfloat16", **changes.get("training", {})}
    described = {"model": "-", "data": "-", "output": "-", "objective": {"name": "dpo"}}
    config = parse_config({**described, **changes, "training": settings}, run)
    spec = ModelSpec(config, shape, tokenizer=None)
    inputs = Inputs(groups(4 * BATCH), groups(BATCH), [], "")
    return CountingPlanner(config, inputs, 4096, spec, torch.device("cuda", 0), card_gb << 30, 0)


def main() -> None:
    """Print a row for every run and card."""
    fake_card.load()
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
            fits = "" if plan.budget_warning is None else "  not even the longest group fits"
            assert plan.budget_warning is not None or peak <= CARD_SHARE * card_gb
            numbers = f"{budget:9,}{step:9,}{peak:9.1f}{peak / card_gb:7.0%}{plans:9}{seconds:9.1f}"
            print(f"{run:24}{card_gb:>4} GB{numbers}{fits}", flush=True)


if __name__ == "__main__":
    main()
