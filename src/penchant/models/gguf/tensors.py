"""Models in GGUF's terms: names of the tensors in a file, and the sizes that describe the model.

Names are those of the package `gguf` (`gguf.get_tensor_name_map`); meanings are llama.cpp's (`src/models/*.cpp`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from penchant.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """How llama.cpp computes the models of one type of `transformers`.

    Attributes:
        architecture: llama.cpp's name of the type.
        rope_types: ways of scaling positions that a file can describe.
        activation: name of the activation in `transformers`.
        norm_offset: number that the model adds to the weights of its norms, and that a file has added already.
        full_period: one layer of so many attends to all tokens, the others to a window.
        soft_caps: whether logits of attention and of tokens are capped.
        layers_27b: layers of the model of 27B, whose queries are divided by the root of hidden size / heads.
    """

    architecture: str
    rope_types: tuple[str, ...] = ("default", "linear")
    activation: str = "silu"
    norm_offset: float = 0.0
    full_period: int = 1
    soft_caps: bool = False
    layers_27b: int | None = None


_LLAMA = Family("llama", rope_types=("default", "linear", "llama3"))
_GELU = "gelu_pytorch_tanh"
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma2": Family("gemma2", activation=_GELU, norm_offset=1.0, full_period=2, soft_caps=True, layers_27b=46),
    "gemma3_text": Family("gemma3", activation=_GELU, norm_offset=1.0, full_period=6, layers_27b=62),
}
"""The family of each model type."""


def check_architecture(config: PretrainedConfig, where: str) -> None:
    """Raise ModelError where llama.cpp would not compute what this model does."""
    fix = "use convert_hf_to_gguf.py of llama.cpp"
    kind = config.model_type
    if kind not in FAMILIES:
        raise ModelError(f"it is a {kind}; GGUF files are written of {', '.join(FAMILIES)}", where=where, fix=fix)
    family, unsupported = FAMILIES[kind], []
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        unsupported.append("biases")
    activation = getattr(config, "hidden_act", None) or config.hidden_activation
    if activation != family.activation:
        unsupported.append(f"the activation {activation}")
    # Every layer of a Mistral has the window, and `exact_context` keeps texts inside it.
    if kind != "mistral" and (getattr(config, "layer_types", None) or layer_types(config)) != layer_types(config):
        unsupported.append("sliding windows" if family.full_period == 1 else "sliding windows in other layers")
    if getattr(config, "use_bidirectional_attention", False):
        unsupported.append("attention to later tokens")
    if getattr(config, "query_pre_attn_scalar", query_scale(config)) != query_scale(config):
        unsupported.append(f"queries divided by the root of {config.query_pre_attn_scalar}")
    caps = [getattr(config, f"{name}_logit_softcapping", None) for name in ("attn", "final")]
    if any((cap is not None) != family.soft_caps for cap in caps):
        unsupported.append(f"soft caps of {caps[0]} and {caps[1]}")
    if kind == "qwen2" and head_size(config) * config.num_attention_heads != config.hidden_size:
        unsupported.append("heads of another size than hidden size / heads")
    unsupported += _unsupported_positions(config)
    if unsupported:
        raise ModelError(
            f"it has {' and '.join(unsupported)}, which a GGUF file of a {kind} cannot say", where=where, fix=fix
        )


def _unsupported_positions(config: PretrainedConfig) -> list[str]:
    ropes = [(rope_parameters(config), FAMILIES[config.model_type].rope_types)]
    if (window := config.rope_parameters.get("sliding_attention")) is not None:
        ropes.append((window, ("default",)))
    problems = [f"positions scaled by {_type(rope)}" for rope, rope_types in ropes if _type(rope) not in rope_types]
    partial = any(rope.get("partial_rotary_factor", 1.0) != 1.0 for rope, _ in ropes)
    return [*problems, *(["positions in a part of each head"] if partial else [])]


def head_size(config: PretrainedConfig) -> int:
    """Width of each attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def query_scale(config: PretrainedConfig) -> int:
    """The number whose root llama.cpp divides queries by."""
    if config.num_hidden_layers == FAMILIES[config.model_type].layers_27b:
        return int(config.hidden_size // config.num_attention_heads)
    return head_size(config)


def layer_types(config: PretrainedConfig) -> list[str]:
    """Which tokens llama.cpp lets each layer attend to, in the words of `transformers`."""
    period = FAMILIES[config.model_type].full_period
    numbers = range(1, config.num_hidden_layers + 1)
    return ["sliding_attention" if number % period else "full_attention" for number in numbers]


def rope_parameters(config: PretrainedConfig) -> dict[str, Any]:
    """Rotary parameters of the layers that attend to all tokens."""
    rope: dict[str, Any] = config.rope_parameters.get("full_attention", config.rope_parameters)
    return rope


def _type(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type", "default"))


def exact_context(config: PretrainedConfig) -> int:
    """Tokens up to which llama.cpp computes what the model does: of a Mistral, it has no window."""
    window = config.sliding_window if config.model_type == "mistral" else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def add_sizes(library: Any, writer: Any, config: PretrainedConfig) -> None:
    """Write the model's sizes to a `gguf.GGUFWriter`.

    Args:
        library: the package `gguf`.
    """
    head, rope = head_size(config), rope_parameters(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(exact_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope["rope_theta"])
    if _type(rope) == "linear":
        writer.add_rope_scaling_type(library.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if FAMILIES[config.model_type].full_period > 1:
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base_swa(config.rope_parameters.get("sliding_attention", rope)["rope_theta"])
    if FAMILIES[config.model_type].soft_caps:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def named_tensors(library: Any, model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of the file, in float32 and in the shapes of the model, one at a time.

    A tied output layer is left out.

    Args:
        library: the package `gguf`.

    Raises:
        ModelError: a weight has no name in GGUF, or is not finite.
    """
    config, family = model.config, FAMILIES[model.config.model_type]
    architectures = {name: architecture for architecture, name in library.MODEL_ARCH_NAMES.items()}
    names = library.get_tensor_name_map(architectures[family.architecture], config.num_hidden_layers)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if _type(rope_parameters(config)) == "llama3":
        yield "rope_freqs.weight", _frequency_divisors(model)
    for name, weight in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        if tied and stem == "lm_head":
            continue
        if stem not in names:
            raise ModelError(f"llama.cpp's {family.architecture} has no {name}", where=config.name_or_path)
        tensor = weight.detach().float().cpu()
        if not tensor.isfinite().all():
            raise ModelError(f"{name} is not finite", where=config.name_or_path, fix="train it anew, or from before")
        if suffix == "weight" and tensor.ndim == 1:
            tensor = tensor + family.norm_offset
        yield f"{names[stem]}.{suffix}", _permute_rotary_rows(stem, tensor, config)


def _permute_rotary_rows(stem: str, tensor: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """The weight as llama.cpp stores it: of a Llama's queries and keys, rows that are rotated together are neighbours.

    Hugging Face rotates number i of a head with number i + size / 2; of other architectures llama.cpp does so too.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(stem.rpartition(".")[2])
    if FAMILIES[config.model_type] is not _LLAMA or heads is None:
        return tensor
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _frequency_divisors(model: PreTrainedModel) -> torch.Tensor:
    """Divisors [head size / 2] of the rotary frequencies: frequencies without scaling over the model's own."""
    head = head_size(model.config)
    exponents = torch.arange(0, head, 2, dtype=torch.float32) / head
    plain = rope_parameters(model.config)["rope_theta"] ** -exponents
    return plain / model.model.rotary_emb.inv_freq.float().cpu()
