"""What passes without gradients cost: python benchmarks/forward_speed.py [--threads N] [--rounds 5]

    evaluate, references   the pass of `penchant evaluate` and of reference models, beside a training step's forward
                           over the same groups, cut into the same micro-batches
    ranking                prompts of about 250 tokens with 20 candidate titles of 5 to 12, beside the prompts with one
                           candidate each, and beside 20 padded rows a prompt

In one process, in turn, on a Llama of 23M random weights in float32; medians and least to most of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "speed"))
import torch
from workloads import WORKLOADS, build

from penchant.cli.main import keep_freed_memory
from penchant.data.reading import read_groups
from penchant.data.tokenization import tokenize_groups
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import pack
from penchant.engine.distributed import World
from penchant.engine.padded import PaddedScorer
from penchant.engine.scorer_choice import choose_scorer, sample_groups
from penchant.engine.scoring import micro_batches, score_groups
from penchant.models.loading import load_model, load_tokenizer

BUDGET = 8192
PAIRS = WORKLOADS["pairs"]
TITLES = replace(PAIRS, name="titles", prompt=(230, 270), response=(5, 12), negatives=(19, 19))


def alternately(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], a: str, b: str) -> str:
    """Time of a over that of b."""
    ratios = sorted(x / y for x, y in zip(seconds[a], seconds[b], strict=True))
    return f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    world = World(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as temporary:
        datasets: list[Sequence[TokenizedGroup]] = []
        for workload, steps in ((PAIRS, 8), (TITLES, 4)):
            folder = Path(temporary) / workload.name
            build(workload, folder, steps)
            tokenizer = load_tokenizer(str(folder / "model"))
            groups = read_groups(folder / "groups.jsonl").groups
            datasets.append(tokenize_groups(groups, tokenizer, max_length=2048)[0])
        # The tree's model gets other attention; the padded rows keep transformers' own.
        model, padded_model = (load_model(str(Path(temporary) / "pairs" / "model")) for _ in range(2))
    pairs, titles = datasets
    scorer = choose_scorer(model, sample_groups(pairs)).scorer

    def training_forward() -> None:
        scorer.train()
        for members in micro_batches(scorer, pairs, BUDGET):
            scorer(pack([pairs[i] for i in members]))

    def without_gradients(groups: Sequence[TokenizedGroup]) -> None:
        score_groups(scorer, groups, world=world, budget=BUDGET, dtype="float32")

    seconds = alternately({"training": training_forward, "evaluate": lambda: without_gradients(pairs)}, options.rounds)
    tokens = sum(len(g.prompt) * len(g.responses) + sum(map(len, g.responses)) for g in pairs)
    print(f"# {options.threads} threads, torch {torch.__version__}; {options.rounds} rounds in turn")
    for name, times in seconds.items():
        print(f"{name:10s} {tokens / statistics.median(times):8.0f} tokens/s")
    print(f"evaluate's time over that of training's forward: {ratio(seconds, 'evaluate', 'training')}")
    single = [replace(group, responses=group.responses[:1]) for group in titles]
    padded = PaddedScorer(padded_model)

    def rows() -> None:
        with torch.no_grad():
            for group in titles:
                padded(pack([group]))

    seconds = alternately(
        {
            "20 titles": lambda: without_gradients(titles),
            "one title": lambda: without_gradients(single),
            "padded": rows,
        },
        options.rounds,
    )
    token_ratio = sum(g.length for g in titles) / sum(g.length for g in single)
    print(
        f"20 titles' time over one title's: {ratio(seconds, '20 titles', 'one title')}; tokens: {token_ratio:.2f} times"
    )
    print(f"20 padded rows' time over 20 titles': {ratio(seconds, 'padded', '20 titles')}")


if __name__ == "__main__":
    main()
