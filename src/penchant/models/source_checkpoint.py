"""The files a model was loaded from; their tensors that the model does not use are recorded by name, or refused.

transformers drops those on loading: an image tower beside the language part, layers for multi-token prediction, or a
tensor that belongs to another architecture. `penchant.models.saving` writes them again.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from penchant.errors import ModelError
from penchant.models.multimodal import check_text_alone, is_multimodal, remove_towers

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
    """Names of a weight file's tensors, and a function that reads one of them in the shape it has there."""
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


_OLD_BUFFERS = r"(^|\.)(rotary_emb\.inv_freq|position_ids)$|\.(attn|attention)\.(masked_)?bias$"
"""Constants that earlier versions of transformers stored with the weights."""


@dataclass(frozen=True)
class Checkpoint:
    """The files a model was loaded from.

    Attributes:
        targets: for each tensor of the files that the model uses, the name of the weight it became.
        converted: names of those tensors that were joined with others, or split, on loading.
        unused: tensors that the model does not use; they are written again as they are.
        dropped: tensors of a head that another head replaces.
    """

    source: str
    files: tuple[Path, ...]
    targets: Mapping[str, str]
    converted: frozenset[str]
    unused: tuple[str, ...]
    dropped: tuple[str, ...] = ()

    @property
    def notice(self) -> str | None:
        """One line for people, about the unused tensors; None where there are none."""
        if not self.unused:
            return None
        parts = Counter(_part(name) for name in self.unused)
        part_counts = ", ".join(f"{part} ({count})" for part, count in sorted(parts.items()))
        return f"{len(self.unused)} tensors of the model's files are not trained and stay as they are: {part_counts}"


_CHECKPOINTS: WeakKeyDictionary[nn.Module, Checkpoint] = WeakKeyDictionary()


def checkpoint_of(model: nn.Module) -> Checkpoint | None:
    """The files a model was loaded from, or None where that is not known (GGUF, a model built in memory)."""
    return _CHECKPOINTS.get(model)


def keep_language_part(model: PreTrainedModel, source: str, *, replaced_pattern: str | None = None) -> None:
    """Record every tensor of a newly loaded model's files, then remove the model's towers from memory.

    Args:
        source: the folder or hub id it was loaded from.
        replaced_pattern: a regular expression of tensors of a head that another head replaces; they are dropped.

    Raises:
        ModelError: the files hold a tensor that neither the model uses nor transformers knows of; or the model has no
            language part that reads text alone.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        _refuse_quantised(model, source)
        return
    files = weight_files(source)
    target_of = weight_targets(model, tensor_names(files))
    weights = model.state_dict().keys()
    dropped = tuple(name for name in target_of if replaced_pattern is not None and re.search(replaced_pattern, name))
    strays = [name for name, (target, _) in target_of.items() if target not in weights and name not in dropped]
    _refuse_strays(model, source, strays)
    remove_towers(model)
    check_text_alone(model, source)
    weights = model.state_dict().keys()
    targets = {name: target for name, (target, _) in target_of.items() if target in weights}
    converted = frozenset(name for name in targets if target_of[name][1])
    unused = tuple(name for name in target_of if name not in targets and name not in dropped)
    _CHECKPOINTS[model] = Checkpoint(source, tuple(files), targets, converted, unused, dropped)


def _refuse_quantised(model: PreTrainedModel, source: str) -> None:
    """Raise ModelError for a quantised multimodal model, whose towers could not be written beside trained weights."""
    if is_multimodal(model.config):
        raise ModelError(
            f"this {type(model).__name__} is quantised; its language part cannot be saved beside its towers",
            where=source,
            fix="start from the checkpoint that it was quantised from",
        )


def _refuse_strays(model: PreTrainedModel, source: str, strays: Sequence[str]) -> None:
    """Raise ModelError for tensors that no part of the model is made of, and that transformers does not know of."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), _OLD_BUFFERS]
    configured_patterns = getattr(model.config, "unused_weights", None) or ()
    unknown = [
        name
        for name in strays
        if not any(re.search(pattern, name) for pattern in patterns)
        and not any(fnmatch(name, pattern) for pattern in configured_patterns)
    ]
    if unknown:
        raise ModelError(
            f"{len(unknown)} tensors of the model's files are no weights of a {type(model).__name__}; "
            f"the first is {unknown[0]}",
            where=source,
            fix="check that config.json belongs to these weights; if it does, name them there, as in "
            f'"unused_weights": ["{unknown[0]}"], and they are kept as they are in whatever is saved',
        )


def _part(name: str) -> str:
    """The part of a model that a tensor belongs to, as in ``model.visual``."""
    words = name.split(".")[:-1] or [name]
    return ".".join(words[: 2 if words[0] == "model" else 1])
