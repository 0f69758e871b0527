"""How long a run's layers take to compile: without torch's cache of compiled kernels, and with it in a new process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from workloads import Workload, make_model

from gpu_parts.setting import Figures, Item, Setting
from gpu_parts.training import GROUPS, PAIRS, is_compiled

if TYPE_CHECKING:
    from penchant.data.tokenized import TokenizedGroup

LENGTHS = 8
"""Number of micro-batches of other lengths after the first, for which nothing should be compiled."""


def compile_items(setting: Setting) -> Mapping[str, Item]:
    """Two layers of the shape of Qwen2.5-0.5B: all layers share their graphs."""
    names = {"cold": GROUPS} if setting.tiny else {"cold": GROUPS, "warm": GROUPS, "cold, pairs": PAIRS}
    return {
        item: partial(compile_shallow, setting, name, "pairs" if "pairs" in item else "groups")
        for item, name in names.items()
    }


def compile_shallow(setting: Setting, name: str, cache: str) -> Figures:
    """Seconds of the compilation with its check, and of the first and second passes at a run's size."""
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ[variable] = str(setting.work / "compiled" / cache / variable)
    workload = setting.workload(name)
    workload = replace(workload, shape=replace(workload.shape, layers=2))
    model = make_model(workload).float().train()
    draw = np.random.default_rng(0)
    groups = [group(workload, draw, shorter_by=n) for n in range(LENGTHS + 2)]
    # A CPU's layers are made a card's, which are not fused and read all prompts first.
    with nullcontext() if setting.device == "cuda" else as_on_a_card():
        return timed(setting, workload, model, groups)


def timed(setting: Setting, workload: Workload, model: Any, groups: list[TokenizedGroup]) -> Figures:
    """Compile a model's layers, run them at a run's size and at other lengths."""
    from penchant.engine.scorer_choice import choose_scorer, compile_scorer
    from penchant.engine.scoring import precision
    from penchant.engine.working_weights import WorkingWeights

    # The check at load is not what is timed.
    choice = choose_scorer(model, groups[:2], workload.dtype)
    scorer = choice.scorer.train()
    # A CPU's kernels take the compiler of C++ a minute, and are no card's.
    backend = "inductor" if setting.device == "cuda" else "eager"
    weights = WorkingWeights(scorer, getattr(torch, workload.dtype))
    start = time.perf_counter()
    notice = compile_scorer(scorer, groups[:2], workload.dtype, weights, choice.rounding, backend)
    figures: Figures = {"compile_seconds": time.perf_counter() - start, "notice": notice}

    def passes(members: list[TokenizedGroup]) -> float:
        start = time.perf_counter()
        with precision(torch.device(setting.device), workload.dtype), weights.in_place():
            scorer(scorer.collate(members, 1.0).to(model.device)).sum().backward()
            weights.add_gradients()
        if setting.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    micro_batch = max(2, workload.batch // 2)
    figures["first_passes_seconds"] = passes([groups[0]] * micro_batch)
    figures["second_passes_seconds"] = passes([groups[0]] * micro_batch)
    graphs = graph_count()
    for n in range(LENGTHS):
        passes([groups[n + 1]] * (micro_batch - n % 2))
    # Where a layer cannot be compiled, all run as they are.
    figures["compiled"] = is_compiled(scorer)
    return {**figures, "graphs": graphs, "graphs_of_other_lengths": graph_count() - graphs}


@contextmanager
def as_on_a_card() -> Iterator[None]:
    """Layers of a model on the CPU are those that a card would compile."""
    from penchant.data.trees import with_prompts_first
    from penchant.engine import tree
    from penchant.engine.kernels import layer_fusion

    with (
        mock.patch.object(layer_fusion, "_fuse_modules"),
        mock.patch.object(tree, "reorder_for_attention", lambda batch, model: with_prompts_first(batch)),
    ):
        yield


def graph_count() -> int:
    """Number of graphs that were compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def group(workload: Workload, draw: np.random.Generator, shorter_by: int) -> TokenizedGroup:
    """A group of random ids, all its parts shorter by `shorter_by` tokens."""
    from penchant.data.groups import PreferenceGroup
    from penchant.data.tokenized import TokenizedGroup

    candidates = 1 + workload.negatives[0]
    preferences = PreferenceGroup("", tuple(map(str, range(candidates))), preferred=0)

    def ids(length: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return draw.integers(4, workload.shape.vocabulary, max(1, length))

    return TokenizedGroup(
        ids(workload.prompt[0] - shorter_by),
        tuple(ids(workload.response[0] - shorter_by) for _ in range(candidates)),
        preferences,
    )
