"""Multimodal checkpoints: the language part is loaded, trained and scored under the original class and module names.

A text token's log-prob does not depend on the image, video or audio towers, so they are taken out of memory once the
files have been read; `penchant.models.saving` writes them back unchanged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from penchant.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the language part: the whole configuration where the model reads text only."""
    if config.is_encoder_decoder:
        return config
    part: PretrainedConfig = config.get_text_config(decoder=True)
    return part


def is_multimodal(config: PretrainedConfig) -> bool:
    """Whether the language part is one section of the configuration beside others."""
    return text_config(config) is not config


def generation_class(config: PretrainedConfig) -> Any:
    """The class that loads a language model of this configuration: what a multimodal checkpoint's config.json names.

    `AutoModelForCausalLM` would take the language part of some families out of its checkpoint, as another model.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES as FAMILIES

    if is_multimodal(config):
        name = config.architectures[0] if config.architectures else FAMILIES.get(config.model_type)
        if name in FAMILIES.values():
            return getattr(transformers, name)
    return transformers.AutoModelForCausalLM


def classification_class(config: PretrainedConfig, source: str) -> Any:
    """The class that loads a reward model of this configuration.

    Raises:
        ModelError: transformers has no reward model of this multimodal family.
    """
    from transformers import AutoModelForSequenceClassification as Classifier

    if is_multimodal(config) and type(config) not in Classifier._model_mapping:
        name = (config.architectures or [config.model_type])[0]
        raise ModelError(
            f"transformers has no sequence classifier of a {name}, so a reward model of it could not be loaded again",
            where=source,
            fix="train a preference head on it instead (objective.name=preference_head), or start from a text model",
        )
    return Classifier


def blank_language_model(kind: Any, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model of random weights, on the default device, without towers.

    Args:
        kind: as `generation_class` or `classification_class` give it.
    """
    build = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    model: PreTrainedModel = build(config, dtype=dtype)
    remove_towers(model)
    return model


def language_model(model: PreTrainedModel) -> nn.Module:
    """The decoder that reads text, without its head: the model's own base model, or a multimodal model's text part."""
    if is_multimodal(model.config):
        decoder: nn.Module = model.get_decoder()
        return decoder
    base: nn.Module = getattr(model, model.base_model_prefix)
    return base


def remove_towers(model: PreTrainedModel) -> None:
    """Remove the parts of a multimodal model that text does not pass through; a text model stays as it is.

    Raises:
        ModelError: the model has no module that is its language part.
    """
    if not is_multimodal(model.config):
        return
    decoder = language_model(model)
    path = next((name for name, module in model.named_modules() if module is decoder), "")
    if not path or decoder is model.base_model:
        raise ModelError(
            f"the language part of a {type(model).__name__} is not known",
            where=str(model.config.name_or_path or model.config.model_type),
            fix="use a model whose class in transformers has a language_model",
        )
    heads = (model.get_output_embeddings(), getattr(model, "score", None))
    container: nn.Module = model
    for name in path.split("."):
        for child_name, child in list(container.named_children()):
            if child_name != name and not any(child is head for head in heads):
                setattr(container, child_name, None)
        container = getattr(container, name)


@torch.no_grad()
def check_text_alone(model: PreTrainedModel, source: str) -> None:
    """Raise ModelError where a multimodal model without its towers cannot read text (Gemma 3n)."""
    if not is_multimodal(model.config):
        return
    training = model.training
    try:
        model.eval()(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=model.device), use_cache=False)
    except (AttributeError, TypeError) as error:
        raise ModelError(
            f"a {type(model).__name__} needs its towers to read text, and Penchant trains the language part alone",
            where=source,
            fix="use another multimodal model, or the text model of this family",
        ) from error
    finally:
        model.train(training)


def set_attention(model: PreTrainedModel, implementation: str) -> None:
    """`set_attn_implementation` for the part in memory: transformers warns of towers that it cannot find."""
    parts: dict[str, Any] = {"": implementation}
    for name in model.config.sub_configs:
        if getattr(model.config, name) is text_config(model.config):
            parts[name] = implementation
    model.set_attn_implementation(parts if is_multimodal(model.config) else implementation)


def qualify_targets(adapters: PeftModel) -> None:
    """Save a multimodal model's LoRA targets as whole module names: short ones would match its towers too."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = adapters.get_base_model()
    if not is_multimodal(base.config):
        return
    config: Any = adapters.peft_config["default"]
    config.target_modules = {name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}


def refuse_tower_adapters(model: PreTrainedModel, source: str) -> None:
    """Raise ModelError where an adapter folder adapts modules outside a multimodal model's language part."""
    from safetensors import safe_open

    file = Path(source) / "adapter_model.safetensors"
    if not is_multimodal(model.config) or not file.is_file():
        return
    module_names = {name for name, _ in model.named_modules()}
    with safe_open(file, framework="pt") as tensors:
        names = (name.removeprefix("base_model.model.") for name in tensors.keys())  # noqa: SIM118
        outside = sorted(
            {name for name in names if name.partition(".lora_")[0] not in module_names and ".lora_" in name}
        )
    if outside:
        base = json.loads((file.parent / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        raise ModelError(
            f"the adapter also adapts modules outside the language part, the first is {outside[0]}",
            where=source,
            fix=f"merge it with peft first: PeftModel.from_pretrained(MODEL_OF_{type(model).__name__}({base}), "
            "FOLDER).merge_and_unload().save_pretrained(MERGED)",
        )


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The language part of a multimodal model as an ordinary text model that shares its weights; a text model itself.

    Raises:
        ModelError: transformers has no text model of this family.
    """
    from transformers import AutoModelForCausalLM

    if not is_multimodal(model.config):
        return model
    config = text_config(model.config)
    try:
        with torch.device("meta"):
            text: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    except ValueError as error:
        raise ModelError(f"transformers has no text model of a {config.model_type}") from error
    language, head = language_model(model), model.get_output_embeddings()
    text.base_model.load_state_dict(language.state_dict(), assign=True)
    text.get_output_embeddings().load_state_dict(head.state_dict(), assign=True)
    text.tie_weights()
    for name, buffer in language.named_buffers():
        owner, _, leaf = name.rpartition(".")
        text.base_model.get_submodule(owner).register_buffer(leaf, buffer, persistent=False)
    config.name_or_path = model.config.name_or_path
    return text
