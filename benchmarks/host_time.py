"""What a micro-batch costs the host beside eager transformers: python benchmarks/host_time.py [--repeats 12]

Forward and backward of 24 layers on tensors so small that only Python, autograd and dispatch take time. Ours: layers
compiled whole, a row with all prompts first, the output layer in blocks; attention's kernels are replaced by as many
copies of their tensors. Theirs: the same model padded, as transformers runs it. CPU time of this process, the least of
the repeats, in turns; the first run compiles for about a minute.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks" / "speed")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402
from workloads import Shape, llama_config  # noqa: E402

from penchant.data.groups import PreferenceGroup  # noqa: E402
from penchant.data.tokenized import TokenizedGroup  # noqa: E402
from penchant.data.trees import pack, with_prompts_first  # noqa: E402
from penchant.engine.kernels import layer_fusion, shared_prompts  # noqa: E402
from penchant.engine.kernels.compiled import compile_layers  # noqa: E402
from penchant.engine.tree import TreeScorer, use_tree  # noqa: E402

SHAPE = Shape(hidden=112, layers=24, heads=14, kv_heads=2, intermediate=128, vocabulary=4096, biased=True)
GROUPS, PROMPT, RESPONSE = 4, 6, 4


def copied(q: Tensor, k: Tensor, v: Tensor, call: Any, scale: float) -> tuple[Tensor, Tensor]:
    """In place of one kernel of attention: a copy of the queries [N, H, D], and zeros [H, N]."""
    rows = q[call.rows]
    return rows.clone(), rows.new_zeros(rows.shape[1], len(rows))


def copied_back(
    upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, call: Any, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """In place of its backward: copies of the upstream [N, H, D], keys and values."""
    return upstream[call.rows].clone(), k[call.keys].clone(), v[call.keys].clone()


def groups() -> list[TokenizedGroup]:
    """Pairs of random ids."""
    draw, pair = np.random.default_rng(0), PreferenceGroup("", ("a", "b"), preferred=0)

    def ids(length: int) -> Any:
        return draw.integers(4, SHAPE.vocabulary, length)

    return [TokenizedGroup(ids(PROMPT), (ids(RESPONSE), ids(RESPONSE)), pair) for _ in range(GROUPS)]


def ours(model: LlamaForCausalLM) -> Callable[[], None]:
    """Forward and backward of the compiled tree."""
    with mock.patch.object(layer_fusion, "_fuse_modules"):
        use_tree(model)
    compile_layers(model)
    scorer, batch = TreeScorer(model), with_prompts_first(pack(groups()))
    return lambda: scorer(batch).sum().backward()


def theirs(model: LlamaForCausalLM) -> Callable[[], None]:
    """Forward and backward of transformers' model on padded rows, with all logits."""
    ids = torch.randint(4, SHAPE.vocabulary, (2, PROMPT + RESPONSE))

    def run() -> None:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        (hidden @ model.lm_head.weight.T).logsumexp(-1).sum().backward()

    return run


def main() -> int:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(llama_config(SHAPE))
    kernel = shared_prompts._EagerAttention
    with mock.patch.multiple(kernel, forward=staticmethod(copied), backward=staticmethod(copied_back)):
        sides = {"ours": ours(copy.deepcopy(model)), "transformers": theirs(model)}
        milliseconds = dict.fromkeys(sides, float("inf"))
        for turn in range(repeats + 3):
            for name, run in sides.items():
                start = time.process_time()
                run()
                if turn >= 3:
                    milliseconds[name] = min(milliseconds[name], 1e3 * (time.process_time() - start))
    for name, value in milliseconds.items():
        print(f"{name:14}{value:8.1f} ms")
    print(f"{'ratio':14}{milliseconds['ours'] / milliseconds['transformers']:8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
