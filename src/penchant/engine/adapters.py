"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on any module, by PEFT."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from penchant.engine.adapter_targets import refuse_custom_forwards, target_advice
from penchant.errors import ConfigError, reason_of

if TYPE_CHECKING:
    from peft import PeftModel

_CLASSIFIER_HEADS = ("score", "classifier")
"""Modules of a sequence classifier that PEFT trains fully."""


def add_adapters(
    model: nn.Module, *, rank: int, alpha: float, dropout: float, targets: str | list[str], task: str | None = None
) -> PeftModel:
    """Freeze a module's weights and add low-rank adapters, which start as the identity.

    Args:
        targets: ``all-linear``, names of layers (each the end of a module's name), or one regular expression.
        task: PEFT's name for a language model's; None for other modules.

    Raises:
        ConfigError: a name matches no layer, or a layer cannot have an adapter.
    """
    from peft import LoraConfig, get_peft_model

    names = _linear_names(model, task)  # before PEFT wraps some of them
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type=task)
    try:
        # PEFT accepts several names if one of them matches.
        for name in targets if isinstance(targets, list) else []:
            if not any(f".{module_name}".endswith(f".{name}") for module_name, _ in model.named_modules()):
                raise ValueError(f"no module is called {name}")
        # PEFT's annotation asks for a model of transformers; any module works.
        peft_model: Any = get_peft_model(model, config)
        _refuse_inexact(peft_model)
        refuse_custom_forwards(peft_model)
    except (ValueError, re.error) as error:
        reason = reason_of(error)
        raise ConfigError(f"lora.targets: {reason}", fix=target_advice(names, model, reason)) from error
    adapted: PeftModel = peft_model
    return adapted


def sort_modules(folder: Path) -> None:
    """Sort the module names in an adapter's configuration: PEFT writes sets, whose order differs between processes."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for key in ("target_modules", "modules_to_save", "exclude_modules", "target_parameters"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _refuse_inexact(adapted: nn.Module) -> None:
    """Raise ValueError where an adapter is on an embedding that does more than look rows up (OPT's of positions).

    PEFT's forward would look rows up by the first argument, whatever that is; merged, the layer would differ.
    """
    for name, module in adapted.named_modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, nn.Embedding) and hasattr(module, "lora_embedding_A"):
            is_lookup = type(base).forward is nn.Embedding.forward or hasattr(base, "embed_scale")
            if not is_lookup:
                short_name = name.removeprefix("base_model.model.")
                raise ValueError(f"{short_name} is a {type(base).__name__}, whose forward is not an embedding's")


def untrained_adapters(adapted: nn.Module) -> list[str]:
    """Names of layers whose adapters are still the identity because no gradient reached them."""
    idle = []
    for name, module in adapted.named_modules():
        parts = [*getattr(module, "lora_B", {}).values(), *getattr(module, "lora_embedding_A", {}).values()]
        weights = [getattr(part, "weight", part) for part in parts]
        if weights and not any(bool(weight.any()) for weight in weights):
            idle.append(name.removeprefix("base_model.model."))
    return idle


def _linear_names(model: nn.Module, task: str | None) -> list[str]:
    """Last parts of linear layers' names, without a reward model's head, which is trained fully."""
    kinds = ("Linear", "Conv1D")
    names = (name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__ in kinds)
    heads = _CLASSIFIER_HEADS if task == "SEQ_CLS" else ()
    return sorted({name for name in names if not name.isdigit() and name not in heads})
