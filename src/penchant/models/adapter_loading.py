"""Adapter folders in PEFT's format: loaded onto their base model, and merged into it.

An adapter on one of two tied modules unties them: after the merge each module has its own weights.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from penchant.errors import ModelError, PenchantError, reason_of
from penchant.models.adapter_vocabulary import adapter_rows, refuse_unknown_rows

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
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


_COPY = ".modules_to_save."
_TOKENS = ".token_adapter.trainable_tokens_delta"
_CHECK_BASE = (
    "check that base_model_name_or_path in its adapter_config.json names the model it was trained on, "
    "or get the whole folder again"
)


def merge_adapter_into(
    model: PreTrainedModel, source: str, *, task: str | None = None, absent: tuple[str, ...] = ()
) -> PreTrainedModel:
    """A base model with an adapter folder merged in, its vocabulary as large as the adapter's.

    Args:
        model: the adapter's base model, changed in place.
        task: PEFT's name of the model's task; None takes the adapter's own.
        absent: names of modules that the adapter may hold weights for and this model lacks.

    Raises:
        ModelError: the adapter cannot be read, holds weights that the model does not take, or cannot be merged.
    """
    adapted = load_adapter(model, source, task=task, absent=absent)
    with _adapter_errors(source):
        biased = add_biases(adapted)
        merged = merge(adapted)
        if biased:
            declare_biases(merged, source)
        return merged


def load_adapter(
    model: PreTrainedModel | PeftModel,
    source: str,
    *,
    name: str = "default",
    task: str | None = None,
    absent: tuple[str, ...] = (),
) -> PeftModel:
    """Load an adapter folder onto its base model, beside the adapters that the model already has.

    Args:
        name: the name under which the model holds the adapter.
        task, absent: as in `merge_adapter_into`.

    Raises:
        ModelError: as `merge_adapter_into`.
    """
    with _adapter_errors(source):
        return _load(model, source, name, task, absent)


def _load(
    model: PreTrainedModel | PeftModel, source: str, name: str, task: str | None, absent: tuple[str, ...]
) -> PeftModel:
    from peft import PeftModel, get_peft_model
    from peft.utils import set_peft_model_state_dict

    config = _config(source)
    weights = adapter_weights(source, getattr(model, "_checkpoint_conversion_mapping", None))
    weights = {key: tensor for key, tensor in weights.items() if not _is_in_modules(key, absent)}
    if task is not None:
        config.task_type = task
    base_rows = model.get_input_embeddings().num_embeddings
    rows = adapter_rows(model, weights, config)
    if rows not in (None, base_rows):
        model.resize_token_embeddings(rows, mean_resizing=False)
        refuse_unknown_rows(model, weights, config, base_rows, source)
    base = config.base_model_name_or_path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of tied weights, which `merge` sees to.
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
            adapted: Any = model
        else:
            adapted = get_peft_model(model, config, adapter_name=name)
        _refuse_missing_copies(adapted, weights, name, source)
        result = set_peft_model_state_dict(adapted, weights, adapter_name=name)
    config.base_model_name_or_path = base
    prefix = getattr(adapted.base_model, "prefix", "")
    missing_keys = [key for key in result.missing_keys if prefix and prefix in key and f".{name}" in key]
    unexpected = [key for key in result.unexpected_keys if not _is_duplicate(key, weights)]
    _refuse("which the model does not have", unexpected, name, source)
    _refuse("which are not in its file", missing_keys, name, source)
    return cast("PeftModel", adapted.eval())


def adapter_weights(source: str, names: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Tensors of an adapter folder's file, with their shapes there, by their names in the file.

    Args:
        names: patterns of module names in older checkpoints, mapped to the model's names.
    """
    from peft.utils import load_peft_weights

    weights: dict[str, Tensor] = load_peft_weights(source, device="cpu", key_mapping=dict(names or {}) or None)
    # PEFT writes the weights of a fully trained module twice where the vocabulary has grown.
    for key in [key for key in weights if _COPY in key]:
        plain = key.replace(_COPY, ".")
        if plain not in weights or torch.equal(weights[plain], weights[key]):
            weights[plain] = weights.pop(key)
    return weights


def rows_of_adapter(model: PreTrainedModel, source: str) -> int | None:
    """Number of embedding rows that an adapter folder was trained with; None where the folder does not show it.

    Args:
        model: the adapter's base; may be on the meta device.
    """
    if not any((Path(source) / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        return None
    with _adapter_errors(source):
        return adapter_rows(model, adapter_weights(source), _config(source))


def is_shareable(source: str) -> bool:
    """Whether a folder's adapter leaves its base model unchanged, so that several adapters can share the base."""
    with _adapter_errors(source):
        return all(".lora_" in key for key in adapter_weights(source))


def merge(adapted: PeftModel) -> PreTrainedModel:
    """The base model with its adapters merged in: an ordinary model that computes what the adapted one does."""
    base: Any = adapted.get_base_model()
    was_tied = bool(getattr(base.config, "tie_word_embeddings", False))
    _untie_adapted(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged: Any = adapted.merge_and_unload()
    if was_tied:
        _retie_equal_weights(merged)
    model: PreTrainedModel = merged.requires_grad_(True)  # PEFT froze the base; merged, it is an ordinary model.
    return model


def _untie_adapted(model: nn.Module) -> None:
    """Give each layer under an adapter weights of its own, where other layers share them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        base = layer.get_base_layer()
        for name, weight in base._parameters.items():
            if weight is not None and uses[id(weight)] > 1:
                setattr(base, name, nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad))


def _retie_equal_weights(model: PreTrainedModel) -> None:
    """Tie equal weights again, and remove the other ties from the model and its configuration."""
    ties = model.all_tied_weights_keys
    for name, source in list(ties.items()):
        weight, tied_weight = model.get_parameter(name), model.get_parameter(source)
        if weight is not tied_weight and torch.equal(weight, tied_weight):
            module, _, last = name.rpartition(".")
            setattr(model.get_submodule(module), last, tied_weight)
        elif weight is not tied_weight:
            del ties[name]
    head = model.get_output_embeddings()
    tied = head is None or head.weight is model.get_input_embeddings().weight
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = tied


@contextmanager
def _adapter_errors(source: str) -> Iterator[None]:
    """Turn a library's exception about an adapter folder into a ModelError with its reason and a fix."""
    try:
        yield
    except PenchantError:
        raise
    except Exception as error:
        raise ModelError(
            f"the adapter cannot be loaded: {reason_of(error)}",
            where=source,
            fix=_CHECK_BASE,
        ) from error


def _config(source: str) -> PeftConfig:
    from peft import PeftConfig

    config: PeftConfig = PeftConfig.from_pretrained(source)
    if config.is_prompt_learning:
        raise ModelError(
            f"it is a {config.peft_type.value} adapter, which has no weights that could be merged into a model",
            where=source,
            fix="train a low-rank adapter instead, with lora.rank=16",
        )
    config.inference_mode = True
    return config


def _refuse_missing_copies(adapted: nn.Module, weights: Mapping[str, Tensor], name: str, source: str) -> None:
    """Raise ModelError where a fully trained module is not in the file: PEFT's own error has only its name."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    for module_name, module in adapted.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            keys = [f"{module_name}.{key}" for key in module.adapter_state_dict_load_map(name)]
            _refuse("which are not in its file", [key for key in keys if key not in weights], name, source)


def _refuse(problem: str, keys: list[str], name: str, source: str) -> None:
    if keys:
        first_key = keys[0].replace(f".{name}.", ".").removesuffix(f".{name}")
        raise ModelError(
            f"the adapter has {len(keys)} weights {problem}; the first is {first_key}",
            where=source,
            fix=_CHECK_BASE,
        )


def _is_duplicate(key: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether a weight is a copy of another's: PEFT writes individually trained tokens for both of two tied modules."""
    tensor = weights.get(key)
    if tensor is None or not key.endswith(_TOKENS):
        return False
    return any(
        name != key and name.endswith(_TOKENS) and torch.equal(weight, tensor) for name, weight in weights.items()
    )


def _is_in_modules(key: str, modules: tuple[str, ...]) -> bool:
    """Whether a weight belongs to one of the named modules."""
    return any(f".{name}." in f".{key}" for name in modules)
