"""Rounding of each way to score candidates, and of the output layer's gradients, beside float64.

    python benchmarks/precision.py scores MODEL DATA [--groups 12] [--longest 400]
    python benchmarks/precision.py gradients

`scores` compares with a float64 forward of the same weights:

    weights bfloat16   both the weights and the matrix products, as `evaluate`, `rank`, `score` and `tasks` run
    weights float32    bfloat16 matrix products by autocast over float32 weights, as training runs

For each way the root mean square and the largest error of candidates' summed log-probs, in nats, and its ratio to the
larger of the two padded ways. MODEL is a folder of a Llama-like model small enough for a copy in float64.

`gradients` takes the output layer's gradients in bfloat16 with its vocabulary cut into 1 to 75 blocks, each block's
product rounded to bfloat16 before it is added, as on a CPU, and not, as on a GPU. They are compared, before a sum over
blocks is rounded, with float64 products of the same bfloat16 factors: the norm of the error over the norm of the
gradient, and the mean error in the direction of the gradient over the gradient's mean magnitude.
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
from penchant.engine.kernels.compiled import logits_gradient
from penchant.engine.kernels.layer_fusion import fuse_layers
from penchant.engine.kernels.output_layer import CPU_RULE, OutputLayer
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("gradients")
    scores = parts.add_parser("scores")
    scores.add_argument("model")
    scores.add_argument("data")
    scores.add_argument("--groups", type=int, default=12)
    scores.add_argument("--longest", type=int, default=400, help="tokens of a group that is measured")
    options = parser.parse_args()
    if options.part == "gradients":
        compare_gradients()
    else:
        compare_scores(options.model, options.data, options.groups, options.longest)


def compare_scores(model: str, data: str, count: int, longest: int) -> None:
    """Print the errors of candidates' log-probs by every way."""
    from transformers import AttentionInterface

    AttentionInterface.register(TREE, tree_attention)
    tokenizer = load_tokenizer(model)
    read = read_groups(data).groups
    tokenized, _ = tokenize_groups(read, tokenizer, max_length=10**6, empty="drop", identical="drop")
    groups = [group for group in tokenized if group.length <= longest][:count]
    for weights in ("bfloat16", "float32"):
        exact = reference(model, weights, groups)
        print(f"weights {weights}: {len(exact)} candidates, {exact.mean():.1f} nats on average")
        errors = {name: way(model, weights, groups, *WAYS[name]) - exact for name in WAYS}
        bar = max(rms(errors[name]) for name in WAYS if name.startswith("padded"))
        for name, error in errors.items():
            print(f"  {name:26} rms {rms(error):.4f}  largest {error.abs().max():.4f}  ratio {rms(error) / bar:.2f}")


def compare_gradients() -> None:
    """Print the errors of the output layer's gradients by number of blocks: 64 tokens, width 64, 38,400 words."""
    print(f"{'blocks':>6}  {'products':9}{'hidden: error':>16}{'bias':>11}{'weight: error':>16}{'bias':>11}")
    for blocks in (1, 3, 15, 75):
        for exact in (False, True):
            figures = "".join(f"{e:16.1e}{b:11.1e}" for e, b in gradient_errors(blocks, exact))
            print(f"{blocks:6}  {'float32' if exact else 'bfloat16':9}{figures}")


def gradient_errors(blocks: int, exact: bool) -> list[tuple[float, float]]:
    """Relative error and bias of the gradients by hidden states and weight.

    Args:
        exact: whether products are added up unrounded.
    """
    torch.manual_seed(0)
    tokens, width, words = 64, 64, 38_400
    hidden, weight = torch.randn(tokens, width).bfloat16(), torch.randn(words, width) / 4
    targets, upstream = torch.randint(0, words, (tokens,)), torch.randn(tokens) / tokens
    rule = replace(CPU_RULE, block_elements=tokens * words // blocks, float32_products=exact)
    layer = OutputLayer(weight, None, None, None, rule)
    _, normalisers, _ = layer.log_probs(hidden, targets, 0)
    sums = layer.gradients(hidden, targets, normalisers, upstream, [], (True, True, False, False, False))
    rounded, factors = weight.bfloat16(), []
    for block in rule.slices(tokens, words):
        logits = hidden @ rounded[block].T
        logits_gradient(logits, normalisers, targets - block.start, upstream, None)
        factors.append(logits.double())
    assert len(factors) == blocks
    by_logits = torch.cat(factors, 1)
    references = by_logits @ rounded.double(), by_logits.T @ hidden.double()
    return [relative(actual, expected) for actual, expected in zip((sums.hidden, sums.weight), references, strict=True)]


def relative(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """The norm of the error over that of what is expected, and its mean in that direction over the mean magnitude."""
    error = actual.double() - expected
    return float(error.norm() / expected.norm()), float((error * expected.sign()).mean() / expected.abs().mean())


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
