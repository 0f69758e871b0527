"""Layers that cannot have an adapter, and advice that names those that can."""

from __future__ import annotations

import torch
from torch import nn

_READ_DIRECTLY = {
    **dict.fromkeys(("mamba", "falcon_mamba"), ("x_proj", "dt_proj", "out_proj")),
    **dict.fromkeys(("mamba2", "falcon_h1", "nemotron_h"), ("out_proj",)),
}
"""Layers whose weight a model reads without calling the layer's forward, so that an adapter would have no effect."""


def refuse_custom_forwards(model: nn.Module) -> None:
    """Raise ValueError where an adapted layer returns anything but a matrix product, or is never called."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    unused = _READ_DIRECTLY.get(kind, ())
    for name, module in model.named_modules():
        base = getattr(module, "base_layer", None)
        layer = name.rpartition(".")[2]
        if base is not None and layer in unused:
            raise ValueError(f"a {kind} reads the weight of '{layer}' past its forward; an adapter there does nothing")
        if not isinstance(base, nn.Linear) or type(base).forward is nn.Linear.forward:
            continue
        inputs = torch.zeros(2, base.in_features, dtype=base.weight.dtype, device=base.weight.device)
        try:
            with torch.no_grad():
                output = base(inputs)
        except (RuntimeError, IndexError, ValueError):
            output = None
        if not isinstance(output, torch.Tensor) or output.shape != (2, base.out_features):
            raise ValueError(
                f"'{layer}' is a {type(base).__name__}, which computes more than a matrix product; "
                "no adapter can stand beside it"
            )


def target_advice(names: list[str], model: nn.Module, refusal: str) -> str:
    """Advice for lora.targets: layers' names that the refusal does not quote; all-linear only where it quotes none."""
    unused = _READ_DIRECTLY.get(getattr(getattr(model, "config", None), "model_type", ""), ())
    usable_names = [name for name in names if f"'{name}'" not in refusal and name not in unused]
    if not usable_names:
        return "train all weights: leave lora out"
    layers = {name.rpartition(".")[2] for name, _ in model.named_modules()} - {""}
    if usable_names == names and not any(f"'{layer}'" in refusal for layer in layers):
        return f"use all-linear, or names of the model's layers: {', '.join(names)}"
    return f"name layers that can have one: lora.targets=[{','.join(usable_names)}]"
