"""Models in GGUF's terms: names of the tensors in a file, and the sizes that describe the model.

Names and meanings are llama.cpp's, as the package `gguf` gives them (`gguf.constants`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from penchant.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ARCHITECTURES = ("llama", "qwen2")

_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def check_architecture(config: PretrainedConfig, where: str) -> None:
    """Raise ModelError where llama.cpp's Llama or Qwen2 would not compute what this model does."""
    if config.model_type not in ARCHITECTURES:
        raise ModelError(
            f"it is a {config.model_type}; GGUF files are written of {' and '.join(ARCHITECTURES)}",
            where=where,
            fix="use convert_hf_to_gguf.py of llama.cpp",
        )
    unsupported = []
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        unsupported.append("biases")
    if config.hidden_act != "silu":
        unsupported.append(f"the activation {config.hidden_act}")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        unsupported.append("sliding windows")
    if config.model_type == "qwen2" and _head_size(config) * config.num_attention_heads != config.hidden_size:
        unsupported.append("heads of another size than hidden size / heads")
    rope = config.rope_parameters
    rope_types = ("default", "linear", "llama3") if config.model_type == "llama" else ("default", "linear")
    if rope.get("rope_type", "default") not in rope_types:
        unsupported.append(f"positions scaled by {rope['rope_type']}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        unsupported.append("positions in a part of each head")
    if unsupported:
        raise ModelError(
            f"it has {' and '.join(unsupported)}, which a GGUF file of a {config.model_type} cannot say",
            where=where,
            fix="use convert_hf_to_gguf.py of llama.cpp",
        )


def add_sizes(writer: Any, config: PretrainedConfig, rope_scaling: Any) -> None:
    """Write the model's sizes to a `gguf.GGUFWriter`.

    Args:
        rope_scaling: `gguf.RopeScalingType`.
    """
    head = _head_size(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters.get("rope_type") == "linear":
        writer.add_rope_scaling_type(rope_scaling.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def named_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of the file, in float32, one at a time; a tied output layer is left out.

    Raises:
        ModelError: a weight has no name in GGUF, or is not finite.
    """
    config = model.config
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if config.rope_parameters.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _frequency_divisors(model)
    for name, weight in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        if tied and stem == "lm_head":
            continue
        tensor = weight.detach().float().cpu()
        if not tensor.isfinite().all():
            raise ModelError(f"{name} is not finite", where=config.name_or_path, fix="train it anew, or from before")
        yield f"{_tensor_stem(stem, config)}.{suffix}", _permute_rotary_rows(stem, tensor, config)


def _head_size(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _tensor_stem(stem: str, config: PretrainedConfig) -> str:
    if stem in _WHOLE:
        return _WHOLE[stem]
    number, _, part = stem.removeprefix("model.layers.").partition(".")
    if not number.isdigit() or part not in _LAYER:
        raise ModelError(f"{stem} has no place in a GGUF file", where=config.name_or_path)
    return f"blk.{number}.{_LAYER[part]}"


def _permute_rotary_rows(stem: str, tensor: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """The weight as llama.cpp stores it: of a Llama's queries and keys, rows that are rotated together are neighbours.

    Hugging Face rotates number i of a head with number i + size / 2; of a Qwen2 llama.cpp does so too.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(stem.rpartition(".")[2])
    if config.model_type != "llama" or heads is None:
        return tensor
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _frequency_divisors(model: PreTrainedModel) -> torch.Tensor:
    """Divisors [head size / 2] of the rotary frequencies: frequencies without scaling over the model's own."""
    config = model.config
    exponents = torch.arange(0, _head_size(config), 2, dtype=torch.float32) / _head_size(config)
    plain = config.rope_parameters["rope_theta"] ** -exponents
    return plain / model.model.rotary_emb.inv_freq.float().cpu()
