"""Rounding of each way to score candidates, beside a float64 forward of the same weights.

    python benchmarks/precision.py MODEL DATA [--groups 12] [--longest 400]

    weights bfloat16   both the weights and the matrix products, as `evaluate`, `rank`, `score` and `tasks` run
    weights float32    bfloat16 matrix products by autocast over float32 weights, as training runs

For each way the root mean square and the largest error of candidates' summed log-probs, in nats, and its ratio to the
larger of the two padded ways. MODEL is a folder of a Llama-like model small enough for a copy in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from penchant.data.reading import read_groups
from penchant.data.tokenization import tokenize_groups
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import pack
from penchant.engine.attention import TREE, tree_attention
from penchant.engine.kernels.layer_fusion import fuse_layers
from penchant.engine.padded import PaddedScorer
from penchant.engine.scoring import precision
from penchant.engine.tree import TreeScorer
from penchant.models.loading import load_model, load_tokenizer

CPU = torch.device("cpu")


def padded(model: torch.nn.Module, groups: Sequence[TokenizedGroup]) -> Tensor:
    """[C] summed log-probs in nats, one sequence at a time."""
    scorer = PaddedScorer(model)
    sequences = [pack([replace(group, responses=(r,))]) for group in groups for r in group.responses]
    return torch.cat([scorer(sequence).flatten() for sequence in sequences])


def packed(model: torch.nn.Module, groups: Sequence[TokenizedGroup]) -> Tensor:
    """[C] summed log-probs in nats, by the packed tree."""
    scorer, batches = TreeScorer(model), [pack([group]) for group in groups]
    return torch.cat([scorer(batch).flatten()[batch.slots] for batch in batches])


WAYS: dict[str, tuple[str, bool, Callable[..., Tensor]]] = {
    "padded, eager": ("eager", False, padded),
    "padded, sdpa": ("sdpa", False, padded),
    "tree, the model's layers": (TREE, False, packed),
    "tree, leaner layers": (TREE, True, packed),
}


def main() -> None:
    from transformers import AttentionInterface

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--longest", type=int, default=400, help="tokens of a group that is measured")
    options = parser.parse_args()
    AttentionInterface.register(TREE, tree_attention)
    tokenizer = load_tokenizer(options.model)
    read = read_groups(options.data).groups
    tokenized, _ = tokenize_groups(read, tokenizer, max_length=10**6, empty="drop", identical="drop")
    groups = [group for group in tokenized if group.length <= options.longest][: options.groups]
    for weights in ("bfloat16", "float32"):
        exact = reference(options.model, weights, groups)
        print(f"weights {weights}: {len(exact)} candidates, {exact.mean():.1f} nats on average")
        errors = {name: way(options.model, weights, groups, *WAYS[name]) - exact for name in WAYS}
        bar = max(rms(errors[name]) for name in WAYS if name.startswith("padded"))
        for name, error in errors.items():
            print(f"  {name:26} rms {rms(error):.4f}  largest {error.abs().max():.4f}  ratio {rms(error) / bar:.2f}")


def rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


@torch.no_grad()
def reference(model: str, weights: str, groups: Sequence[TokenizedGroup]) -> Tensor:
    loaded = load_model(model, dtype=getattr(torch, weights)).double().eval()
    loaded.set_attn_implementation("eager")
    return padded(loaded, groups)


@torch.no_grad()
def way(
    model: str,
    weights: str,
    groups: Sequence[TokenizedGroup],
    attention: str,
    lean: bool,
    score: Callable[[torch.nn.Module, Sequence[TokenizedGroup]], Tensor],
) -> Tensor:
    loaded = load_model(model, dtype=getattr(torch, weights)).eval()
    loaded.set_attn_implementation(attention)
    if lean:
        fuse_layers(loaded)
    with precision(CPU, "bfloat16"):
        return score(loaded, groups)


if __name__ == "__main__":
    main()
