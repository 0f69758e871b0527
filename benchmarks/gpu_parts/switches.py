"""What each step towards a fast GPU is worth: runs with one of them switched off, beside one with all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from gpu_parts.setting import Figures, Item, Setting
from gpu_parts.training import GROUPS, PAIRS, run

EARLIER_BLOCK, EARLIER_KEPT = 1 << 25, 1 << 27
"""Logits worked on at a time and kept before blocks were made for a card."""

EARLIER_BUDGET = 8192


def switch_items(setting: Setting) -> Mapping[str, Item]:
    """Groups of eight, then pairs, without one thing each."""
    runs = [(name, switch) for name in (GROUPS, PAIRS) for switch in SWITCHES]
    if setting.tiny:
        runs = [(GROUPS, "all on"), (GROUPS, "G1: small token budget")]
    return {f"{name}, {switch}": partial(run_without, setting, name, switch) for name, switch in runs}


def run_without(setting: Setting, name: str, switch: str) -> Figures:
    """A short run at the whole step's budget, and how much longer its steps are than with all of them on."""
    short = replace(setting, warmup=min(2, setting.warmup), steps=min(4, setting.steps))
    workload = short.workload(name)
    tokens = workload.batch * (workload.prompt[0] + (1 + workload.negatives[0]) * workload.response[0])
    budget = min(EARLIER_BUDGET, tokens // 2) if switch == "G1: small token budget" else tokens
    task = replace(short.task("penchant", workload, short.workload_folder(workload)), token_budget=budget)
    with SWITCHES[switch]():
        figures = run(short, workload, task)
    whole = setting.figures.get("switches", {}).get(f"{name}, all on", {})
    if "milliseconds" in whole:
        figures["milliseconds_more"] = figures["milliseconds"] - whole["milliseconds"]
        pairs = zip(figures["losses"], whole["losses"], strict=True)
        figures["loss_difference"] = max(abs(a - b) for a, b in pairs)
    return figures


def small_blocks() -> AbstractContextManager[Any]:
    """The output layer in small blocks, of which few are kept."""
    from penchant.engine.kernels import linear_log_probs, output_layer

    rule = output_layer.block_rule

    def earlier(device: torch.device, dtype: torch.dtype) -> output_layer.BlockRule:
        if device.type != "cuda":
            return rule(device, dtype)
        return replace(
            rule(device, dtype),
            block_elements=EARLIER_BLOCK,
            kept_elements=EARLIER_KEPT,
            frozen_elements=EARLIER_BLOCK,
        )

    return mock.patch.object(linear_log_probs, "block_rule", earlier)


@contextmanager
def blocking_copies() -> Iterator[None]:
    """Each tensor of a micro-batch sent by itself, waited for; a step's numbers read one by one."""
    from penchant.data import trees
    from penchant.training import backward
    from penchant.training.loop import Loop

    reduce = Loop._reduce

    def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        return [tensor.to(device) for tensor in tensors]

    def read(loop: Loop, sums: Mapping[str, Tensor], norm: Tensor, signals: Any) -> Any:
        for value in (*sums.values(), norm):
            value.tolist()
        return reduce(loop, sums, norm, signals)

    with (
        mock.patch.object(trees, "copy_together", send),
        mock.patch.object(backward, "copy_together", send),
        mock.patch.object(Loop, "_reduce", read),
    ):
        yield


def gathered_attention() -> AbstractContextManager[Any]:
    """Rows that lie group after group: attention gathers each candidate's keys."""
    from penchant.engine import reward_scorers, tree, tree_check

    stack = ExitStack()
    for module in (tree, tree_check, reward_scorers):
        stack.enter_context(mock.patch.object(module, "reorder_for_attention", lambda batch, model: batch))
    return stack


def cast_in_layers() -> AbstractContextManager[Any]:
    """Weights cast by autocast in each micro-batch instead of once a step, and each layer a product of its own."""
    from penchant.engine.working_weights import WorkingWeights
    from penchant.training import loop, model

    def no_copies(scorer: torch.nn.Module, *arguments: Any) -> WorkingWeights:
        return WorkingWeights(scorer, torch.float32)

    stack = ExitStack()
    for module in (loop, model):
        stack.enter_context(mock.patch.object(module, "working_weights", no_copies))
    return stack


def eager_layers() -> AbstractContextManager[Any]:
    """Layers that are not compiled."""
    from penchant.training import model

    return mock.patch.object(model, "compile_scorer", return_value=None)


SWITCHES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "all on": nullcontext,
    "G3: gathered attention": gathered_attention,
    "G5: eager layers": eager_layers,
    "G1: small token budget": nullcontext,
    "G4: casts in layers": cast_in_layers,
    "G1: small blocks of logits": small_blocks,
    "G2: blocking copies": blocking_copies,
}
"""What is switched off -> its context, those with the largest doubts first."""
