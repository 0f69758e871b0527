"""The tensors of a checkpoint's files that a model does not use: named, refused, or written again bit for bit.

transformers drops them on loading: an image tower beside the language part, layers for multi-token prediction, or a
tensor that belongs to another architecture.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from penchant.engine.checkpoint_files import INDEX, QUIET, open_weights, tensor_names, weight_files, weight_targets
from penchant.engine.multimodal import check_text_alone, is_multimodal, remove_towers, text_config
from penchant.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
    "audio_tokenizer_config.json",
    "chat_template.json",
)
"""What turns images, video and audio into a multimodal model's input, beside its weights."""
_OLD_BUFFERS = r"(^|\.)(rotary_emb\.inv_freq|position_ids)$|\.(attn|attention)\.(masked_)?bias$"
"""Constants that earlier versions of transformers stored with the weights."""


@dataclass(frozen=True)
class Checkpoint:
    """The files a model was loaded from.

    Attributes:
        targets: for each tensor of the files that the model uses, the name of the weight it became.
        converted: those of them that were joined with others, or split, on loading.
        unused: tensors that the model does not use; they are written again as they are.
        dropped: tensors of a head that another one takes the place of.
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
        listed = ", ".join(f"{part} ({count})" for part, count in sorted(parts.items()))
        return f"{len(self.unused)} tensors of the model's files are not trained and stay as they are: {listed}"


_CHECKPOINTS: WeakKeyDictionary[nn.Module, Checkpoint] = WeakKeyDictionary()


def checkpoint_of(model: nn.Module) -> Checkpoint | None:
    """The files a model was loaded from, or None where that is not known (GGUF, a model built in memory)."""
    return _CHECKPOINTS.get(model)


def keep_language_part(model: PreTrainedModel, source: str, *, replaced: str | None = None) -> None:
    """Account for every tensor of a freshly loaded model's files, then take the model's towers out of memory.

    Args:
        source: the folder or hub id it was loaded from.
        replaced: a regular expression of tensors that another head takes the place of; they are dropped.

    Raises:
        ModelError: the files hold a tensor that neither the model uses nor transformers knows of; or the model has no
            language part that reads text alone.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        _refuse_quantised(model, source)
        return
    files = weight_files(source)
    renamed = weight_targets(model, tensor_names(files))
    weights = model.state_dict().keys()
    dropped = tuple(name for name in renamed if replaced is not None and re.search(replaced, name))
    strays = [name for name, (target, _) in renamed.items() if target not in weights and name not in dropped]
    _refuse_strays(model, source, strays)
    remove_towers(model)
    check_text_alone(model, source)
    weights = model.state_dict().keys()
    targets = {name: target for name, (target, _) in renamed.items() if target in weights}
    converted = frozenset(name for name in targets if renamed[name][1])
    unused = tuple(name for name in renamed if name not in targets and name not in dropped)
    _CHECKPOINTS[model] = Checkpoint(source, tuple(files), targets, converted, unused, dropped)


def save_model(
    model: PreTrainedModel,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model in Hugging Face format, with what its files held beside the weights it uses.

    Args:
        weights: the state dict to write, tied weights once; None is the model's own.
        dtype: of most weights, for config.json; None is the model's own.

    Raises:
        ModelError: the files the model was loaded from are not there any more, or are others.
    """
    checkpoint = checkpoint_of(model)
    if checkpoint is None or not checkpoint.unused:
        model.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
        _write_dtypes(model, folder, dtype or model.dtype)
        return
    if weights is None:
        tied = getattr(model, "all_tied_weights_keys", {})
        weights = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    recorded_names = {*checkpoint.targets, *checkpoint.unused, *checkpoint.dropped}
    if not all(file.is_file() for file in checkpoint.files) or set(tensor_names(checkpoint.files)) != recorded_names:
        raise ModelError(
            "the model's files were changed since it was loaded, and tensors that are not trained are read from them",
            where=checkpoint.source,
            fix="put the files back and run again with --resume",
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_files(checkpoint, _values(model, checkpoint, weights), folder)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    _write_dtypes(model, folder, dtype or model.dtype, checkpoint.source)
    copy_processors(checkpoint.source, folder)


def copy_processors(source: str, folder: Path) -> None:
    """Copy the `PROCESSOR_FILES` that a folder or hub id has."""
    from transformers.utils import cached_file

    for name in PROCESSOR_FILES:
        path = cached_file(source, name, **QUIET)
        if path is not None:
            shutil.copyfile(path, folder / name)


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


def _values(model: PreTrainedModel, checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the names of the files' tensors; a weight that has none there gets a name like theirs."""
    from transformers.core_model_loading import revert_weight_conversion

    tied = getattr(model, "all_tied_weights_keys", {})
    buffers = {name for name, _ in model.named_buffers()}
    values, covered = {}, set(buffers)
    for name, target in checkpoint.targets.items():
        if name not in checkpoint.converted and target not in buffers:
            # A tied weight that the files hold twice is two tensors there.
            values[name] = weights[target] if target in weights else weights[tied[target]].clone()
            covered.add(target)
    remaining = {name: tensor for name, tensor in weights.items() if name not in covered}
    values.update(revert_weight_conversion(model, remaining))
    lost = sorted(checkpoint.converted - values.keys())
    if lost:
        raise ModelError(
            f"the weights cannot be written under the names of the model's files; the first is {lost[0]}",
            where=checkpoint.source,
            fix="save the base model anew with transformers' save_pretrained, and train from that folder",
        )
    return values


def _write_files(checkpoint: Checkpoint, values: Mapping[str, Tensor], folder: Path) -> None:
    """Every weight file again, one at a time, with new values where there are some."""
    from safetensors.torch import save_file

    added_names = values.keys() - checkpoint.targets.keys()
    weight_map: dict[str, str] = {}
    total = 0
    for number, file in enumerate(checkpoint.files, 1):
        last = number == len(checkpoint.files)
        with open_weights(file) as (names, read_tensor):
            remaining = [name for name in names if name not in checkpoint.dropped]
            tensors = {name: _own_memory(values[name] if name in values else read_tensor(name)) for name in remaining}
        tensors |= {name: _own_memory(values[name]) for name in sorted(added_names)} if last else {}
        output = (
            "model.safetensors"
            if len(checkpoint.files) == 1
            else (f"model-{number:05}-of-{len(checkpoint.files):05}.safetensors")
        )
        save_file(tensors, folder / output, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, output)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(checkpoint.files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_dtypes(model: PreTrainedModel, folder: Path, dtype: torch.dtype, source: str | None = None) -> None:
    """Correct the dtypes in a folder's config.json: transformers writes those of the weights in memory.

    Args:
        dtype: on disk, of the language part.
        source: the checkpoint that the other parts were copied from, with their dtypes; None where there are none.
    """
    from transformers.utils import cached_file

    file = folder / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    base: dict[str, Any] = {}
    if source is not None:
        base = json.loads(Path(str(cached_file(source, "config.json"))).read_text(encoding="utf-8"))
    values["dtype"] = str(dtype).removeprefix("torch.")
    for name in model.config.sub_configs:
        if isinstance(values.get(name), dict):
            is_text = getattr(model.config, name) is text_config(model.config)
            copied = None if is_text else _configured_dtype(base.get(name) or {}) or _configured_dtype(base)
            values[name]["dtype"] = copied or values["dtype"]
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _configured_dtype(section: Mapping[str, Any]) -> str | None:
    """The dtype in a section of a config.json, under its name of today or of transformers 4."""
    return section.get("dtype") or section.get("torch_dtype")


def _own_memory(tensor: Tensor) -> Tensor:
    """A tensor in memory of its own, as safetensors wants it."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor


def _part(name: str) -> str:
    """The part of a model that a tensor belongs to, as in ``model.visual``."""
    words = name.split(".")[:-1] or [name]
    return ".".join(words[: 2 if words[0] == "model" else 1])
