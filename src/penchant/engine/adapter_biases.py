"""Adapters with biases (``lora_bias``) on layers without: the layers get biases of zeros, also in the configuration."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from penchant.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_SWITCHES = ("attention_bias", "mlp_bias", "use_bias", "use_qkv_bias", "add_bias_linear")
"""Settings by which families of models give their linear layers biases."""


def add_biases(adapted: nn.Module) -> bool:
    """Add a bias of zeros to layers that lack one under an adapter with a bias, which is merged into it.

    Returns:
        whether a layer lacked one.
    """
    bases: list[Any] = [
        layer.get_base_layer()  # type: ignore[operator]
        for layer in adapted.modules()
        if any(getattr(layer, "lora_bias", {}).values())
    ]
    unbiased_layers = [base for base in bases if getattr(base, "bias", None) is None]
    for base in unbiased_layers:
        base.bias = nn.Parameter(base.weight.new_zeros(base.out_features), requires_grad=False)
    return bool(unbiased_layers)


def declare_biases(model: PreTrainedModel, source: str) -> None:
    """Set a model's configuration so that a model built from it has all biases of this one; further ones are zeros.

    Raises:
        ModelError: no setting gives these layers biases, so that a saved model would lose them.
    """
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if names <= _names(model, model.config):
        return
    off_switches = [name for name in _SWITCHES if getattr(model.config, name, None) is False]
    for switches in (
        chosen for count in range(1, len(off_switches) + 1) for chosen in combinations(off_switches, count)
    ):
        config = copy.deepcopy(model.config)
        for switch in switches:
            setattr(config, switch, True)
        expected = _names(model, config)
        if names <= expected and all(name.endswith(".bias") for name in expected - names):
            for name in expected - names:
                layer: Any = model.get_submodule(name.removesuffix(".bias"))
                layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_features))
            for switch in switches:
                setattr(model.config, switch, True)
            return
    raise ModelError(
        f"the adapter has biases (lora_bias) on layers that have none in a {model.config.model_type}",
        where=source,
        fix="train it without lora_bias, or merge it in PEFT into a model that has these biases",
    )


def _names(model: PreTrainedModel, config: PretrainedConfig) -> set[str]:
    with torch.device("meta"):
        blank = type(model)(config)
    return {name for name, _ in blank.named_parameters(remove_duplicate=False)}
