"""Tiny random multimodal checkpoints as they are published: bfloat16, in shards, with processor files beside."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

VOCABULARY = 96
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
_WINDOWS = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
_IMAGES = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
_PATCHES = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
}


TOWERS = ("visual", "vision", "projector", "mtp")
"""Parts of the tensors' names that no language part has."""


def _rope(**values: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **values}


def _qwen3_5() -> hf.PreTrainedModel:
    rope = _rope(mrope_section=[1, 1, 0], partial_rotary_factor=0.5, mrope_interleaved=True)
    heads = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    text = {**_TEXT, **heads, "linear_value_head_dim": 8, "rope_parameters": rope}
    text["layer_types"] = ["linear_attention", "full_attention"]
    config = hf.Qwen3_5Config(text_config=text, vision_config={**_PATCHES, "num_position_embeddings": 16}, **_IMAGES)
    return hf.Qwen3_5ForConditionalGeneration(config)


def _gemma3() -> hf.PreTrainedModel:
    text = {**_TEXT, **_WINDOWS, "query_pre_attn_scalar": 8}
    vision = {**_VISION, "image_size": 16, "patch_size": 4}
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=90)
    return hf.Gemma3ForConditionalGeneration(config)


def _gemma4() -> hf.PreTrainedModel:
    settings = {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "global_head_dim": 8,
        "final_logit_softcapping": 3.0,
    }
    vision = {**_VISION, "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "position_embedding_size": 16}
    config = hf.Gemma4Config(
        text_config={**_TEXT, **_WINDOWS, **settings, "num_kv_shared_layers": 0},
        vision_config=vision,
        audio_config=None,
        **{name: number for number, name in enumerate(_GEMMA4_TOKENS, 90)},
    )
    return hf.Gemma4ForConditionalGeneration(config)


_GEMMA4_TOKENS = ("image_token_id", "boi_token_id", "eoi_token_id", "audio_token_id", "video_token_id")


def _mistral3() -> hf.PreTrainedModel:
    vision = {**_VISION, "model_type": "pixtral", "image_size": 16, "patch_size": 4, "head_dim": 8}
    text = {**_TEXT, "model_type": "mistral", "sliding_window": None}
    config = hf.Mistral3Config(text_config=text, vision_config=vision, image_token_index=90, tie_word_embeddings=False)
    return hf.Mistral3ForConditionalGeneration(config)


def _qwen2_5_vl() -> hf.PreTrainedModel:
    text = {**_TEXT, "rope_parameters": _rope(mrope_section=[2, 1, 1]), "tie_word_embeddings": True}
    vision = {**_PATCHES, "fullatt_block_indexes": [0]}
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **_IMAGES)
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def _llava() -> hf.PreTrainedModel:
    text = {**_TEXT, "model_type": "llama"}
    vision = {**_VISION, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 4}
    config = hf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=90)
    return hf.LlavaForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "qwen3_5": _qwen3_5,
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "mistral3": _mistral3,
    "qwen2_5_vl": _qwen2_5_vl,
    "llava": _llava,
}


def write_multimodal(family: str, folder: Path, tokenizer: Path, *, shards: bool = True, **saving: Any) -> None:
    """Write a family's checkpoint; Qwen3.5's with layers for multi-token prediction, as its authors publish them."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim == 2 else 1.0)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="30KB" if shards else "1GB", **saving)
    (_letters() if family == "qwen3_5" else hf.AutoTokenizer.from_pretrained(tokenizer)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "of " + family}))
    (folder / "video_preprocessor_config.json").write_text("{}")
    if family == "qwen3_5":
        add_tensors(folder, {"mtp.fc.weight": torch.randn(4, 4), "mtp.norm.weight": torch.randn(4).bfloat16()})


def _letters() -> hf.PreTrainedTokenizerBase:
    """A tokenizer of Qwen3.5's class, which transformers takes for this family whatever the folder says: letters."""
    special = ("<pad>", "<s>", "</s>", "<unk>")
    vocabulary = {letter: i for i, letter in enumerate([*special, "\u0120", *string.ascii_lowercase])}
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return hf.Qwen3_5Tokenizer(vocab=vocabulary, merges=[], **names)


def add_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Put tensors into the last of a checkpoint's weight files."""
    from safetensors.torch import load_file, save_file

    file = sorted(folder.glob("*.safetensors"))[-1]
    save_file({**load_file(file), **tensors}, file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        document = json.loads(index.read_text())
        document["weight_map"] |= dict.fromkeys(tensors, file.name)
        index.write_text(json.dumps(document))


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint's files."""
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def in_tower(name: str) -> bool:
    return any(part in name for part in TOWERS)


def towers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if in_tower(name)}


def changed_tensors(base_tensors: dict[str, torch.Tensor], saved_tensors: dict[str, torch.Tensor]) -> set[str]:
    """Names of tensors that are not the same bits; both have the same names."""

    def bits(tensor: torch.Tensor) -> tuple[torch.dtype, bytes]:
        return tensor.dtype, tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()

    assert base_tensors.keys() == saved_tensors.keys()
    return {name for name in base_tensors if bits(base_tensors[name]) != bits(saved_tensors[name])}


def change(model: hf.PreTrainedModel) -> None:
    """Add 0.01 to every weight."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01


def original(folder: Path, **settings: Any) -> hf.PreTrainedModel:
    """The checkpoint by transformers alone, in float32."""
    return hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, **settings).eval()
