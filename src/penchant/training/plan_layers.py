"""How deep a model has to be built to know what a deeper one of the same layers holds.

A decoder repeats a pattern of layers, often of one kind, else of sliding and full attention, or of dense and routed
ones. What a run holds grows by the same bytes with each repetition: two depths tell all.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from penchant.engine.multimodal import text_config
from penchant.training.plan_model import blank_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

COUNTED_WHOLE = 8
"""A model of no more layers is counted as it is."""


@dataclass(frozen=True)
class Depths:
    """Two depths of a model that end as the whole model does.

    Attributes:
        small, large: in layers; they differ by one repetition of the pattern.
        repetitions: that the whole model has more than the large one.
    """

    small: int
    large: int
    repetitions: int


def find_depths(shape: PretrainedConfig, rewards: bool) -> Depths | None:
    """The depths to count; None where the whole model is hardly deeper, or its layers follow no pattern."""
    layers = int(text_config(shape).num_hidden_layers)
    if layers <= COUNTED_WHOLE:
        return None
    with torch.device("meta"):
        model = blank_model(shape, rewards, torch.float32)
    kinds = layer_kinds(model, layers)
    return None if kinds is None else pattern_depths(kinds)


def layer_kinds(model: nn.Module, layers: int) -> list[Hashable] | None:
    """What tells the model's layers apart: classes, shapes, windows; None where they are not in one list."""
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
    """The smallest two depths after which the kinds of layers repeat, up to the last one."""
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
