"""The memory of a run by phase: the run's own code runs on tensors without data, and their bytes are counted.

On a card the layers count as the CPU's fused ones: compiled layers save about as much for their backward, and what a
compiler makes of them is not known before it runs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from penchant.data.tokenized import TokenizedGroup
from penchant.engine.memory import MemoryTracker, replace_tensors, track_memory
from penchant.engine.output_head import linear_head_memory
from penchant.engine.scoring import Scorer, precision
from penchant.engine.tree import TreeScorer
from penchant.engine.working_weights import WorkingWeights, working_weights
from penchant.models.multimodal import text_config
from penchant.planning.model import ModelSpec, blank_model, meta_reference, read_shape, shallow
from penchant.training.model import copy_trained_weights
from penchant.training.optimizer import build_optimizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

COUNTED_WHOLE = 8
"""Maximum number of layers of a model that is counted whole."""

ALLOCATOR_SHARE = 0.6
"""Upper bound of what the CPU's allocator holds beyond tensors and baseline, as a share of both.

It was up to a half in measured runs (benchmarks/results/2026-11-30-cpu-plan-accuracy.txt)."""


@dataclass(frozen=True)
class Depths:
    """Two depths of a model whose layers end with the same pattern as the whole model's.

    Attributes:
        small, large: numbers of layers, which differ by one repetition of the pattern.
        repetitions: repetitions that the whole model has more than the large one.
    """

    small: int
    large: int
    repetitions: int


def find_depths(shape: PretrainedConfig, rewards: bool) -> Depths | None:
    """The depths to count; None where the whole model is not much deeper, or its layers have no pattern."""
    layers = int(text_config(shape).num_hidden_layers)
    if layers <= COUNTED_WHOLE:
        return None
    with torch.device("meta"):
        model = blank_model(shape, rewards, torch.float32)
    kinds = layer_kinds(model, layers)
    return None if kinds is None else pattern_depths(kinds)


def layer_kinds(model: nn.Module, layers: int) -> list[Hashable] | None:
    """A key of every layer: its classes, shapes and windows; None where the layers are not in one list."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == layers]
    if not lists:
        return None
    config: Any = getattr(model, "config", None)
    types: Any = getattr(config and text_config(config), "layer_types", None) or [None] * layers
    return [(_kind(layer), str(types[i])) for i, layer in enumerate(lists[0])]


def _kind(layer: nn.Module) -> Hashable:
    windows = tuple(
        str(getattr(module, name))
        for module in layer.modules()
        for name in ("sliding_window", "is_sliding", "layer_type", "attention_type")
        if hasattr(module, name)
    )
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())
    return tuple(type(module).__name__ for module in layer.modules()), shapes, windows


def pattern_depths(kinds: list[Hashable]) -> Depths | None:
    """The smallest two depths after which the kinds of layers repeat, up to the last layer."""
    layers = len(kinds)
    for period in range(1, layers // 3 + 1):
        start = layers - period
        while start > 0 and kinds[start - 1] == kinds[start - 1 + period]:
            start -= 1
        # Before the pattern there may be other layers. The last layer computes less than those before it, so that the
        # smaller depth has a whole repetition without it.
        small = start + period + (layers - start - period) % period
        small += period if small == start + period else 0
        repetitions = (layers - small) // period - 1
        if repetitions > 0:
            return Depths(small, small + period, repetitions)
    return None


MicroBatch = Sequence[TokenizedGroup]


@dataclass(frozen=True)
class Memory:
    """Bytes on the device, by part and by phase.

    Parts need not add up to a phase: not all of them are alive at once.

    Attributes:
        weights: bytes of the model, with adapters and head; of a second model where a reference stays in memory, and
            of a copy of the trained weights where the reference is updated to the policy, or where layers compute with
            copies in half precision.
        gradients: bytes of the trained weights' gradients.
        optimizer: bytes of AdamW's moments.
        activations: bytes that the forward of the heaviest micro-batch saves for its backward.
        head: peak of the output head's work space, without its weight's gradient.
        reference_pass, training, step, held_out: peak of live tensors in each phase; 0 where a run has no such phase.
        allocator: most bytes that the CPU's allocator may hold beyond tensors and baseline; 0 on a GPU.
        baseline: bytes of the process without tensors: libraries, data, work space of kernels.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    reference_pass: int
    training: int
    step: int
    held_out: int
    allocator: int
    baseline: int

    @property
    def alive(self) -> int:
        """The peak of live tensors over the run."""
        return max(self.reference_pass, self.training, self.step, self.held_out)

    @property
    def peak(self) -> int:
        """Upper bound of what the process holds at any moment of the run."""
        return self.baseline + self.alive + self.allocator


@dataclass(frozen=True)
class PeakBatches:
    """The micro-batches that decide the peak of memory.

    Attributes:
        steps: micro-batches of the optimizer steps with the heaviest ones.
        reference, held_out: the heaviest micro-batches of passes without gradients; empty where there is no such pass.
    """

    steps: Sequence[Sequence[MicroBatch]]
    reference: Sequence[MicroBatch]
    held_out: Sequence[MicroBatch]

    @property
    def reduced(self) -> PeakBatches:
        """Only the first step and the first micro-batch of each pass."""
        return PeakBatches(self.steps[:1], self.reference[:1], self.held_out[:1])

    @property
    def heaviest(self) -> PeakBatches:
        """`reduced` to one micro-batch, used twice where a step has several: gradients exist in the second."""
        reduced_batches = self.reduced
        step = reduced_batches.steps[0]
        largest = max(step, key=lambda groups: sum(group.length for group in groups))
        return replace(reduced_batches, steps=[[largest] * min(2, len(step))])


@dataclass(frozen=True)
class Surroundings:
    """The models and the process besides the trained model.

    Attributes:
        references: models whose log-probs are computed before training; None is the one that training starts from.
        live: a reference that stays in memory while candidates are sampled.
        device: device of all models.
        baseline: bytes of the process without tensors.
    """

    references: Sequence[str | None]
    live: str | None
    device: torch.device
    baseline: int


def count_memory(spec: ModelSpec, batches: PeakBatches, surroundings: Surroundings) -> Memory:
    """Memory of a run. A deep model is counted at two depths, and the bytes that a repetition adds are multiplied."""
    depths = find_depths(spec.shape, spec.rewards)
    memory = _count(spec, batches, surroundings) if depths is None else _count_deep(spec, batches, surroundings, depths)
    share = ALLOCATOR_SHARE if surroundings.device.type == "cpu" else 0.0
    return replace(memory, allocator=round(share * (memory.alive + memory.baseline)))


def _count_deep(spec: ModelSpec, batches: PeakBatches, surroundings: Surroundings, depths: Depths) -> Memory:
    """Memory of a deep model's run, from the counts of two shallower ones."""
    without_named = replace(surroundings, references=[None] if None in surroundings.references else [])
    small, large = (
        _count(
            replace(spec, shape=shallow(spec.shape, layers, spec.vocabulary)),
            batches.heaviest,
            without_named,
        )
        for layers in (depths.small, depths.large)
    )
    sources = [source for source in dict.fromkeys(surroundings.references) if source is not None]
    peaks = [_named_reference(source, spec, batches, surroundings.device) for source in sources]
    return _deepened(small, large, depths.repetitions, max(peaks, default=0))


def _deepened(small: Memory, large: Memory, repetitions: int, named_peak: int) -> Memory:
    """The memory of a model that repeats its pattern of layers so many times more than the larger one.

    Args:
        named_peak: peak of live tensors while a named reference computes its log-probs.
    """
    values = {
        name: value + repetitions * (value - getattr(small, name))
        for name, value in vars(large).items()
        if name != "baseline"
    }
    deep = Memory(**values, baseline=large.baseline)
    # A deep model may peak where gradients are largest, a shallow one where activations are: the prediction is then
    # rather too high than too low.
    minimum = _kept_while_training(deep) + large.training - _kept_while_training(large)
    return replace(deep, training=max(deep.training, minimum), reference_pass=max(deep.reference_pass, named_peak))


def _kept_while_training(memory: Memory) -> int:
    return memory.weights + memory.optimizer + max(memory.activations, memory.gradients)


def _named_reference(source: str, spec: ModelSpec, batches: PeakBatches, device: torch.device) -> int:
    """The peak of live tensors while a named reference computes its log-probs."""
    shape, dtype = read_shape(source), spec.config.training.resolved_dtype
    depths = find_depths(shape, False)

    def peak(layers: int) -> int:
        smaller = shallow(shape, layers, int(shape.get_text_config().vocab_size))
        reference_model = meta_reference(smaller, spec.padded, getattr(torch, dtype))
        with track_memory() as tracker:
            replace_tensors(reference_model, device)
            return _forward(reference_model, batches.reference, tracker, device, dtype)

    if depths is None:
        return peak(int(text_config(shape).num_hidden_layers))
    small, large = peak(depths.small), peak(depths.large)
    return large + depths.repetitions * (large - small)


def _count(spec: ModelSpec, batches: PeakBatches, surroundings: Surroundings) -> Memory:
    """Memory of a run, counted on its whole model."""
    dtype, device = spec.config.training.resolved_dtype, surroundings.device
    live = _weights(surroundings.live, spec, device) if surroundings.live else 0
    reference_peaks = [0]
    for source in dict.fromkeys(surroundings.references):
        if source is not None:
            reference_model = meta_reference(read_shape(source), spec.padded, getattr(torch, dtype))
            with track_memory() as tracker:
                replace_tensors(reference_model, device)
                reference_peaks.append(_forward(reference_model, batches.reference, tracker, device, dtype))
            del reference_model
    scorer = spec.meta_scorer()
    with track_memory() as tracker:
        replace_tensors(scorer, device)
        if None in surroundings.references:
            reference_peaks.append(_forward(scorer, batches.reference, tracker, device, dtype))
        moving_reference = copy_trained_weights(scorer) if spec.config.reference_update == "best" else {}
        copies = working_weights(scorer, device, dtype, 1)
        weights = tracker.live
        counts = _count_steps(spec, scorer.train(), batches.steps, copies, tracker, device)
        held_out = _forward(scorer, batches.held_out, tracker, device, dtype) if batches.held_out else 0
        del moving_reference
    phases = {"training": counts["training"], "step": counts["step"], "held_out": held_out}
    phases = {name: size + live if size else 0 for name, size in phases.items()}
    return Memory(
        **{**counts, **phases},
        weights=weights + live,
        head=head_memory(scorer, max(_targets(groups) for step in batches.steps for groups in step), device, dtype),
        reference_pass=max(reference_peaks),
        allocator=0,
        baseline=surroundings.baseline,
    )


def _count_steps(
    spec: ModelSpec,
    scorer: Scorer,
    steps: Sequence[Sequence[MicroBatch]],
    copies: WorkingWeights,
    tracker: MemoryTracker,
    device: torch.device,
) -> dict[str, int]:
    """Bytes of optimizer steps as in the loop. The moments appear at the end of the first step, so one more follows."""
    settings = spec.config.training
    optimizer = build_optimizer(scorer, settings, spec.config.head.weight_decay)
    weights = tracker.live
    counts = dict.fromkeys(("gradients", "optimizer", "activations", "training", "step"), 0)
    for micro_batches in [steps[0][:1], *steps]:
        for groups in micro_batches:
            tracker.reset()
            with copies.in_place():
                activations = _backward(scorer, groups, tracker, device, settings.resolved_dtype)
                copies.add_gradients()
            counts["activations"] = max(counts["activations"], activations)
            counts["training"] = max(counts["training"], tracker.peak)
        counts["gradients"] = sum(p.grad.nbytes for p in scorer.parameters() if p.grad is not None)
        tracker.reset()
        trained = [p for p in scorer.parameters() if p.grad is not None]
        nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        counts["step"] = max(counts["step"], tracker.peak)
        counts["optimizer"] = tracker.live - weights
    return counts


def head_memory(scorer: Scorer, targets: int, device: torch.device, dtype: str) -> int:
    """The most bytes that the output head works with for so many targets; 0 where a scorer has none, or is padded.

    Args:
        scorer: on any device; only the shape of its head is looked at.
    """
    inner = getattr(scorer, "_inner", (scorer,))[0]
    if not isinstance(inner, TreeScorer):
        return 0
    return linear_head_memory(inner.model.get_output_embeddings(), targets, device, dtype)


def _targets(groups: MicroBatch) -> int:
    return sum(sum(group.tokens) for group in groups)


def _weights(source: str, spec: ModelSpec, device: torch.device) -> int:
    reference_model = meta_reference(
        read_shape(source), spec.padded, getattr(torch, spec.config.training.resolved_dtype)
    )
    with track_memory() as tracker:
        replace_tensors(reference_model, device)
        return tracker.live


def _forward(
    scorer: Scorer, batches: Sequence[MicroBatch], tracker: MemoryTracker, device: torch.device, dtype: str
) -> int:
    """The peak of live tensors in passes without gradients."""
    scorer.eval()
    tracker.reset()
    with torch.no_grad():
        for groups in batches:
            with precision(device, dtype):
                scorer(scorer.collate(groups, 1.0).to(device))
    return tracker.peak


def _backward(scorer: Scorer, groups: MicroBatch, tracker: MemoryTracker, device: torch.device, dtype: str) -> int:
    """Run one micro-batch forward and backward; returns the bytes that the forward saved."""
    start = tracker.live
    with precision(device, dtype):
        log_probs = scorer(scorer.collate(groups, 1.0).to(device))
    activations = tracker.live - start
    log_probs.sum().backward()
    return activations
