"""Vocabulary size that an adapter was trained with, from its weights: its base model is resized to it before loading.

Shapes: V rows of the embedding, D hidden size, r the rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from penchant.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."


def adapter_rows(model: PreTrainedModel | PeftModel, weights: Mapping[str, Tensor], config: PeftConfig) -> int | None:
    """Vocabulary size V of the model that the adapter was trained on; None where its weights do not show it.

    Args:
        model: the base, with or without other adapters; may be on the meta device.
        weights: the adapter's, by their names in its file.
    """
    counts = [rows for name, _ in _vocabulary_modules(model) for rows in _row_counts(name, weights)]
    indices = _token_indices(config)
    if not counts and indices:
        counts = [max(model.get_input_embeddings().num_embeddings, max(indices) + 1)]
    return max(counts, default=None)


def refuse_unknown_rows(
    model: PreTrainedModel | PeftModel, weights: Mapping[str, Tensor], config: PeftConfig, base_rows: int, source: str
) -> None:
    """Raise ModelError where a grown base has rows that the adapter does not hold: they would be random numbers.

    Args:
        model: the base, grown.
        base_rows: V of the base before it was grown.
    """
    rows = model.get_input_embeddings().num_embeddings
    covered = set(_token_indices(config)).issuperset(range(base_rows, rows))
    modules = _vocabulary_modules(model)
    complete = {name for name, _ in modules if rows in _whole_row_counts(name, weights)}
    for name, module in modules:
        tied = [tied_name for tied_name, candidate in modules if candidate.weight is module.weight]
        if rows > base_rows and not covered and not complete.intersection(tied):
            raise ModelError(
                f"the adapter was trained with {rows} tokens, its base model has {base_rows}, and the weights of "
                f"{name} for the others are in neither",
                where=source,
                fix="save the adapter again with save_pretrained(folder, save_embedding_layers=True), "
                "or train it with modules_to_save of the embedding and the output head",
            )


def _vocabulary_modules(model: Any) -> list[tuple[str, Any]]:
    """Names and modules of the input embedding and, where there is one, the output head."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    return [(name, module) for name, module in model.named_modules() if any(module is layer for layer in layers)]


def _matrices(name: str, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Suffixes after a module's name, and the module's matrices under them."""
    prefix = f"{_PREFIX}{name}."
    for key, tensor in weights.items():
        if key.startswith(prefix) and tensor.ndim == 2:
            yield key.removeprefix(prefix), tensor


def _whole_row_counts(name: str, weights: Mapping[str, Tensor]) -> list[int]:
    """V of the module's weight [V, D], where the file holds it whole."""
    return [
        len(tensor)
        for suffix, tensor in _matrices(name, weights)
        if suffix.endswith("weight") and "lora_" not in suffix
    ]


def _row_counts(name: str, weights: Mapping[str, Tensor]) -> list[int]:
    """V by every matrix of a module: its weight, a low-rank A of an embedding [r, V], a B of a head [V, r]."""
    low_rank = [
        tensor.shape[1] if suffix.startswith("lora_embedding_A") else len(tensor)
        for suffix, tensor in _matrices(name, weights)
        if suffix.startswith(("lora_embedding_A", "lora_B"))
    ]
    return [*_whole_row_counts(name, weights), *low_rank]


def _token_indices(config: Any) -> list[int]:
    """Ids of tokens whose embeddings the adapter trains individually."""
    indices = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    return sorted({i for ids in indices.values() for i in ids} if isinstance(indices, dict) else set(indices))
