"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on any module, by PEFT, and their merge into the base."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from penchant.errors import ConfigError, ModelError, reason_of
from penchant.models.loading import adapter_base, load_model, load_tokenizer
from penchant.models.model_kind import model_kind
from penchant.models.preference_head import copy_heads
from penchant.models.reward_model import load_reward_model
from penchant.models.saving import SaveDtype, save_model, saved_dtype
from penchant.models.special_tokens import set_pad_token
from penchant.storage.files import whole_folder

if TYPE_CHECKING:
    from peft import PeftModel


def merge_adapter(source: str, output: Path, save_dtype: SaveDtype = "auto") -> None:
    """Write an adapter folder's base model with the adapter merged in, in float32, as an ordinary model folder.

    A reward model's adapter becomes a sequence classifier with its head; preference heads are copied beside the model.

    Args:
        save_dtype: dtype of the weights on disk; ``auto`` is the base's.

    Raises:
        ModelError: `source` is no adapter folder, or `output` exists already.
    """
    if adapter_base(source) is None:
        raise ModelError("this is no adapter folder: it has no adapter_config.json", where=source)
    if output.exists():
        raise ModelError("it is there already", where=str(output), fix="name a new folder")
    tokenizer = load_tokenizer(source)
    if model_kind(source).is_reward_model:
        model = load_reward_model(source)
        set_pad_token(model, tokenizer, grow=True)
    else:
        model = load_model(source)
    disk_dtype = saved_dtype(model, source, save_dtype).safe_for(dict(model.named_parameters()))
    disk_dtype.round_weights(model)
    with whole_folder(output) as temporary:
        save_model(model, temporary, dtype=disk_dtype.dtype)
        tokenizer.save_pretrained(temporary)
        copy_heads(source, temporary)


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
