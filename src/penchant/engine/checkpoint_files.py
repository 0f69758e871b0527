"""Weight files of a checkpoint: their paths, their tensors' names, and the model weights that these become."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INDEX = "model.safetensors.index.json"
_WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
MISSING_AS_NONE: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_connection_errors": False,
}
"""Arguments with which `cached_file` returns None for a missing file instead of raising."""


def weight_files(source: str) -> list[Path]:
    """Paths of the weight files that transformers reads from a folder or hub id."""
    from transformers.utils import cached_file

    for name in _WEIGHTS:
        path = cached_file(source, name, **MISSING_AS_NONE)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return [Path(path)]
        shards = json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values()
        return [Path(str(cached_file(source, shard))) for shard in sorted(set(shards))]
    return []


@contextmanager
def open_weights(file: Path) -> Iterator[tuple[list[str], Callable[[str], Tensor]]]:
    """Tensor names of a weight file, and a function that reads one of its tensors."""
    from safetensors import safe_open

    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            yield list(tensors.keys()), tensors.get_tensor
        return
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # Files of torch before 1.6 are no archives, and cannot be mapped.
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    yield list(loaded), loaded.__getitem__


def tensor_names(files: Sequence[Path]) -> list[str]:
    """Names of all tensors in the files, file by file."""
    names: list[str] = []
    for file in files:
        with open_weights(file) as (in_file, _):
            names += in_file
    return names


def weight_targets(model: PreTrainedModel, names: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """For each tensor in the files: the weight that transformers makes of it, and whether it is joined or split."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    weights = model.state_dict()
    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    targets = {}
    for name in names:
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, weights)
        # A name that is the model's already is taken as it is, as transformers does.
        keeps_name = target not in weights and name in weights
        targets[name] = (name, False) if keeps_name else (target, pattern is not None)
    return targets
