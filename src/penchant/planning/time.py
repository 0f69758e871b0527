"""The costs of a run's steps on this machine, from a few seconds of its model with one layer and with two.

The difference of both is the cost of a layer; one layer minus that is the cost of everything else. Weights are random;
micro-batches are the run's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from penchant.data.tokenized import TokenizedGroup
from penchant.engine.memory import available_bytes
from penchant.engine.padded import PaddedScorer
from penchant.engine.reward_scorers import PaddedRewardScorer
from penchant.engine.scorer_choice import ScorerChoice, choose_reward_scorer, choose_scorer
from penchant.engine.scoring import Scorer, precision
from penchant.errors import PenchantError
from penchant.models.multimodal import text_config
from penchant.planning.model import ModelSpec, blank_model, random_model, shallow
from penchant.training.model import weights_dtype
from penchant.training.optimizer import build_optimizer, gradient_norm, scale_and_clip

CHECKED_OPERATIONS = 100_000_000_000
"""Maximum floating-point operations of a padded check of the tree: a second or two on a CPU."""

LEAST_TOKENS = 128
"""Minimum tokens of a timed pass: bfloat16 matrix products on a CPU have so many rows."""

SHORTEST = 8
"""Minimum tokens of a prompt or response that is cut."""

PRODUCT_SECONDS = 0.02
"""Seconds that two matrix products take at least, for their rate."""

SLOWEST = 4.0
"""A pass is not timed that would take so many times the seconds of the timing; its costs are those of its products."""

EMBEDDING_ELEMENTS = 1 << 26
"""Maximum elements of the embedding in a timed model; a larger one is cut, and its time scaled."""


class InsufficientMemory(PenchantError):
    """Not even the shallow model fits into memory."""


@dataclass(frozen=True)
class StepCosts:
    """Seconds of the parts of an optimizer step on this machine.

    Attributes:
        layer, layer_forward: seconds per token in a layer, forward and backward, and forward alone.
        non_layer, non_layer_forward: seconds per token outside the layers, mostly in the output head.
        fixed: seconds per micro-batch, independent of its length.
        update: seconds of the optimizer's update per trained parameter.
        rate: floating-point operations per second of the model's matrix products.
        note: why passes could not be timed, where they were not: the costs are then those of their matrix products.
    """

    layer: float
    layer_forward: float
    non_layer: float
    non_layer_forward: float
    fixed: float
    update: float
    rate: float
    note: str | None = None


@dataclass(frozen=True)
class _Sizes:
    tokens: int
    few: int


def check_tree(spec: ModelSpec, sample: Sequence[TokenizedGroup], device: torch.device) -> ModelSpec:
    """The spec with `padded` set to whether the packed tree is not exact, checked on two layers of random weights."""
    vocabulary = _vocabulary(spec)
    _check_room(spec, vocabulary, device)
    model = random_model(shallow(spec.shape, 2, vocabulary), spec.rewards, torch.float32, device)
    choose: Callable[..., ScorerChoice[Any]] = choose_reward_scorer if spec.rewards else choose_scorer
    # In float32: random weights round differently from the real ones.
    weights = sum(p.numel() for p in model.parameters())
    choice = choose(model, _shortened(_clip_to_vocabulary(sample[:2], vocabulary), CHECKED_OPERATIONS // (2 * weights)))
    padded = isinstance(choice.scorer, (PaddedScorer, PaddedRewardScorer))
    notes = (*spec.notes, choice.notice) if choice.notice else spec.notes
    return replace(spec, padded=padded, notes=notes)


def measure_step_costs(
    spec: ModelSpec, typical: Sequence[TokenizedGroup], device: torch.device, seconds: float
) -> StepCosts:
    """Time the parts of a run's steps.

    Args:
        typical: a micro-batch of the run; only the first of its groups are used where all take too long.
        seconds: approximate duration of the timing.

    Raises:
        InsufficientMemory: two layers do not fit into half of the available memory.
    """
    vocabulary = _vocabulary(spec)
    _check_room(spec, vocabulary, device)
    dtype = spec.config.training.resolved_dtype
    rate = _matrix_rate(int(text_config(spec.shape).hidden_size), dtype, device)
    one_layer, two_layers = (_real(spec, layers, vocabulary, device) for layers in (1, 2))
    groups = _clip_to_vocabulary(typical, vocabulary)
    shortest = min(groups, key=lambda group: group.length)
    token_seconds = 6 * sum(p.numel() for p in two_layers.parameters()) / rate
    if token_seconds * min(shortest.length, LEAST_TOKENS) > SLOWEST * seconds:
        return _costs_of_products(spec, one_layer, two_layers, rate)
    # A group of which one pass would take too long is cut.
    max_tokens = int(seconds / token_seconds)
    if shortest.length > max(max_tokens, LEAST_TOKENS):
        (shortest,) = groups = _shortened([shortest], max(max_tokens, LEAST_TOKENS))
    groups = _affordable(groups, shortest, two_layers, seconds, device, dtype)
    runs = {
        "two layers": lambda: _train(two_layers, groups, device, dtype),
        "one layer": lambda: _train(one_layer, groups, device, dtype),
        "short": lambda: _train(one_layer, [shortest], device, dtype),
        "two layers forward": lambda: _read(two_layers, groups, device, dtype),
        "one layer forward": lambda: _read(one_layer, groups, device, dtype),
    }
    run_seconds = _timed(runs, seconds)
    sizes = _Sizes(sum(group.length for group in groups), shortest.length)
    scale = spec.vocabulary / vocabulary
    return _step_costs(run_seconds, sizes, scale, _update_seconds(spec, one_layer), rate)


def _costs_of_products(spec: ModelSpec, one_layer: Scorer, two_layers: Scorer, rate: float) -> StepCosts:
    """The costs of a model's matrix products alone: 2 operations a weight forward, 2 to 4 backward."""

    def weights(scorer: Any, trained: bool) -> int:
        embedding = scorer.model.get_input_embeddings().weight
        head = scorer.model.get_output_embeddings()
        is_multiplied = head is not None and head.weight is embedding
        parameters = (p for p in scorer.parameters() if p.requires_grad or not trained)
        return sum(p.numel() for p in parameters if is_multiplied or p is not embedding)

    layer, layer_trained = (weights(two_layers, trained) - weights(one_layer, trained) for trained in (False, True))
    non_layer, non_layer_trained = weights(one_layer, False) - layer, weights(one_layer, True) - layer_trained
    scale = spec.vocabulary / _vocabulary(spec) / rate
    dtype, device = spec.config.training.resolved_dtype, next(one_layer.parameters()).device
    rates = {dtype: rate, "float32": _matrix_rate(int(text_config(spec.shape).hidden_size), "float32", device)}
    rate_list = ", ".join(f"{value / 1e9:,.1f} GFLOP/s in {name}" for name, value in rates.items())
    return StepCosts(
        layer=(4 * layer + 2 * layer_trained) / rate,
        layer_forward=2 * layer / rate,
        non_layer=(4 * non_layer + 2 * non_layer_trained) * scale,
        non_layer_forward=2 * non_layer * scale,
        fixed=0.0,
        update=_update_seconds(spec, one_layer),
        rate=rate,
        note=f"time is that of matrix products alone, since a pass takes too long to be timed: {rate_list}",
    )


def _affordable(
    groups: list[TokenizedGroup],
    shortest: TokenizedGroup,
    two_layers: Scorer,
    seconds: float,
    device: torch.device,
    dtype: str,
) -> list[TokenizedGroup]:
    """The first groups, as many as can be run three times in about these seconds."""
    group_seconds = _seconds(two_layers, shortest, device, dtype)
    if group_seconds < seconds / 4:
        # The first run includes compilation.
        group_seconds = _seconds(two_layers, shortest, device, dtype)
    token_seconds = group_seconds / shortest.length
    runs = 3 * 3  # Two kinds of training and two of forward passes take as long as three of training two layers.
    while len(groups) > 1 and sum(group.length for group in groups) * token_seconds * runs > seconds:
        groups = groups[: (len(groups) + 1) // 2]
    return groups


def _seconds(scorer: Scorer, group: TokenizedGroup, device: torch.device, dtype: str) -> float:
    start_time = time.perf_counter()
    _train(scorer, [group], device, dtype)
    return time.perf_counter() - start_time


def _step_costs(run_seconds: dict[str, float], sizes: _Sizes, scale: float, update: float, rate: float) -> StepCosts:
    tokens = sizes.tokens
    layer = max(0.0, run_seconds["two layers"] - run_seconds["one layer"]) / tokens
    layer_forward = max(0.0, run_seconds["two layers forward"] - run_seconds["one layer forward"]) / tokens
    non_layer = max(0.0, run_seconds["one layer"] - layer * tokens)
    short_seconds = max(0.0, run_seconds["short"] - layer * sizes.few)
    slope = (non_layer - short_seconds) / (tokens - sizes.few) if tokens > sizes.few else non_layer / tokens
    slope = min(max(0.0, slope), non_layer / tokens)
    return StepCosts(
        layer=layer,
        layer_forward=layer_forward,
        non_layer=slope * scale,
        non_layer_forward=max(0.0, run_seconds["one layer forward"] / tokens - layer_forward) * scale,
        fixed=(non_layer - slope * tokens) * scale,
        update=update,
        rate=rate,
    )


def _timed(runs: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """The fastest run of each, measured in turns: other load only adds time, and differences of them are used."""
    end = time.perf_counter() + seconds
    seconds_by_run: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(6):
        for name, run in runs.items():
            start_time = time.perf_counter()
            run()
            seconds_by_run[name].append(time.perf_counter() - start_time)
        if time.perf_counter() > end:
            break
    return {name: min(values) for name, values in seconds_by_run.items()}


def _train(scorer: Scorer, groups: Sequence[TokenizedGroup], device: torch.device, dtype: str) -> None:
    scorer.train()
    with precision(device, dtype):
        scores = scorer(scorer.collate(groups, 1.0).to(device))
    scores.sum().backward()
    _wait(device)


def _read(scorer: Scorer, groups: Sequence[TokenizedGroup], device: torch.device, dtype: str) -> None:
    scorer.eval()
    with torch.no_grad(), precision(device, dtype):
        scorer(scorer.collate(groups, 1.0).to(device))
    _wait(device)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _update_seconds(spec: ModelSpec, scorer: Scorer) -> float:
    """Seconds of an optimizer's update per trained parameter: gradients scaled, clipped and applied."""
    trained = [p for p in scorer.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = build_optimizer(scorer, spec.config.training)
    update_seconds = []
    for _ in range(3):
        start_time = time.perf_counter()
        scale_and_clip(scorer, 0.5, float(gradient_norm(scorer)), 1.0)
        optimizer.step()
        _wait(trained[0].device)
        update_seconds.append(time.perf_counter() - start_time)
    return min(update_seconds) / sum(p.numel() for p in trained)


def _real(spec: ModelSpec, layers: int, vocabulary: int, device: torch.device) -> Scorer:
    smaller = shallow(spec.shape, layers, vocabulary)
    model = random_model(smaller, spec.rewards, weights_dtype(spec.config), device)
    with torch.device(device):
        return spec.scorer(model)


def _vocabulary(spec: ModelSpec) -> int:
    return min(spec.vocabulary, EMBEDDING_ELEMENTS // int(text_config(spec.shape).hidden_size))


def _clip_to_vocabulary(groups: Sequence[TokenizedGroup], vocabulary: int) -> list[TokenizedGroup]:
    """The groups with token ids clipped to a smaller vocabulary."""
    return [
        replace(
            group,
            prompt=np.minimum(group.prompt, vocabulary - 1),
            responses=tuple(np.minimum(response, vocabulary - 1) for response in group.responses),
        )
        for group in groups
    ]


def _shortened(groups: Sequence[TokenizedGroup], tokens: int) -> list[TokenizedGroup]:
    """The groups with prompts and responses cut by one share, to about so many tokens in total."""
    share = tokens / sum(len(group.responses) * group.longest for group in groups)
    if share >= 1:
        return list(groups)
    return [
        replace(
            group,
            prompt=group.prompt[: max(SHORTEST, int(len(group.prompt) * share))],
            responses=tuple(ids[: max(SHORTEST, int(len(ids) * share))] for ids in group.responses),
            loss_masks=None,
        )
        for group in groups
    ]


def _check_room(spec: ModelSpec, vocabulary: int, device: torch.device) -> None:
    with torch.device("meta"):
        model = blank_model(shallow(spec.shape, 2, vocabulary), spec.rewards, torch.float32)
    # Two models at once, their gradients, and moments of the smaller one.
    required_bytes = 16 * sum(p.numel() for p in model.parameters())
    available = available_bytes(device) // 2
    if required_bytes > available:
        raise InsufficientMemory(
            f"two layers of the model take {required_bytes >> 20} MB to time, {available >> 20} MB is half of what "
            "there is"
        )


def _matrix_rate(size: int, dtype: str, device: torch.device) -> float:
    """Floating-point operations per second of a linear layer's products: its outputs, and its inputs' gradient.

    On a CPU the rows grow until both take `PRODUCT_SECONDS`: without AVX-512 the second is a hundred times slower in
    bfloat16 than in float32.
    """
    max_rows = 512 if device.type == "cuda" else max(16, min(512, CHECKED_OPERATIONS // (40 * size * size)))
    weights = torch.rand(4 * size, size, dtype=getattr(torch, dtype), device=device)
    rows, seconds = max_rows if device.type == "cuda" else 1, 0.0
    while True:
        inputs = torch.rand(rows, size, dtype=weights.dtype, device=device)
        seconds = min(_product_seconds(inputs, weights) for _ in range(4))
        if rows >= max_rows or seconds > PRODUCT_SECONDS:
            return 2 * 2 * rows * size * 4 * size / seconds
        rows = min(4 * rows, max_rows)


def _product_seconds(inputs: Tensor, weights: Tensor) -> float:
    start_time = time.perf_counter()
    linear(inputs, weights) @ weights
    _wait(inputs.device)
    return time.perf_counter() - start_time
