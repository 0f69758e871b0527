"""The files a model was loaded from; their tensors that the model does not use are recorded by name, or refused.

transformers drops those on loading: an image tower beside the language part, layers for multi-token prediction, or a
tensor that belongs to another architecture. `penchant.engine.saving` writes them again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import nn

from penchant.engine.checkpoint_files import tensor_names, weight_files, weight_targets
from penchant.engine.multimodal import check_text_alone, is_multimodal, remove_towers
from penchant.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
