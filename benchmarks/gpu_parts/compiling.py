"""How long a run's layers take to compile: without torch's cache of compiled kernels, and with it in a new process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from workloads import Workload, make_model

from gpu_parts.setting import Figures, Item, Setting
from gpu_parts.training import GROUPS, PAIRS

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
    from penchant.engine.scorer_choice import choose_scorer, compile_scorer
    from penchant.engine.scoring import precision

    workload = setting.workload(name)
    workload = replace(workload, shape=replace(workload.shape, layers=2))
    model = make_model(workload).float().train()
    draw = np.random.default_rng(0)
    groups = [group(workload, draw, cut=n) for n in range(LENGTHS + 2)]
    # The check at load is not what is timed.
    choice = choose_scorer(model, groups[:2], workload.dtype)
    scorer = choice.scorer.train()
    # A CPU's kernels take the compiler of C++ a minute, and are no card's.
    backend = "inductor" if setting.device == "cuda" else "eager"
    start = time.perf_counter()
    notice = compile_scorer(scorer, groups[:2], workload.dtype, choice.rounding, backend)
    figures: Figures = {"compile_seconds": time.perf_counter() - start, "notice": notice}

    def passes(members: list[TokenizedGroup]) -> float:
        start = time.perf_counter()
        with precision(torch.device(setting.device), workload.dtype):
            scorer(scorer.collate(members, 1.0).to(model.device)).sum().backward()
        if setting.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    micro_batch = max(2, workload.batch // 2)
    figures["first_passes_seconds"] = passes([groups[0]] * micro_batch)
    figures["second_passes_seconds"] = passes([groups[0]] * micro_batch)
    graphs = graph_count()
    for n in range(LENGTHS):
        passes([groups[n + 1]] * (micro_batch - n % 2))
    return {**figures, "graphs": graphs, "graphs_of_other_lengths": graph_count() - graphs}


def graph_count() -> int:
    """Number of graphs that were compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def group(workload: Workload, draw: np.random.Generator, cut: int) -> TokenizedGroup:
    """A group of random ids, its responses shorter by `cut` tokens."""
    from penchant.data.groups import PreferenceGroup
    from penchant.data.tokenized import TokenizedGroup

    candidates = 1 + workload.negatives[0]
    preferences = PreferenceGroup("", tuple(map(str, range(candidates))), preferred=0)

    def ids(length: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return draw.integers(4, workload.shape.vocabulary, max(1, length))

    return TokenizedGroup(
        ids(workload.prompt[0]), tuple(ids(workload.response[0] - cut) for _ in range(candidates)), preferences
    )
