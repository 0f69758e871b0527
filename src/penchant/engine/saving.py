"""A model written in Hugging Face format, with what its checkpoint's files held beside its weights, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penchant.engine.checkpoint import Checkpoint, checkpoint_of
from penchant.engine.checkpoint_files import INDEX, MISSING_AS_NONE, open_weights, tensor_names
from penchant.engine.multimodal import text_config
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
"""Files that configure how images, video and audio become a multimodal model's input."""


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
            fix="put the files back and run again, a training run with --resume",
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
        path = cached_file(source, name, **MISSING_AS_NONE)
        if path is not None:
            shutil.copyfile(path, folder / name)


def _values(model: PreTrainedModel, checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the names of the files' tensors; a weight without a tensor there gets a name like theirs."""
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
    missing = sorted(checkpoint.converted - values.keys())
    if missing:
        raise ModelError(
            f"the weights cannot be written under the names of the model's files; the first is {missing[0]}",
            where=checkpoint.source,
            fix="save the base model anew with transformers' save_pretrained, and train from that folder",
        )
    return values


def _write_files(checkpoint: Checkpoint, values: Mapping[str, Tensor], folder: Path) -> None:
    """Write every weight file again, one at a time, with new values where there are some."""
    from safetensors.torch import save_file

    added_names = values.keys() - checkpoint.targets.keys()
    weight_map: dict[str, str] = {}
    total = 0
    count = len(checkpoint.files)
    for number, file in enumerate(checkpoint.files, 1):
        with open_weights(file) as (names, read_tensor):
            remaining = [name for name in names if name not in checkpoint.dropped]
            tensors = {name: _own_memory(values[name] if name in values else read_tensor(name)) for name in remaining}
        if number == count:
            tensors |= {name: _own_memory(values[name]) for name in sorted(added_names)}
        output = "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
        save_file(tensors, folder / output, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, output)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if count > 1:
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
            is_copied = source is not None and getattr(model.config, name) is not text_config(model.config)
            copied_dtype = _configured_dtype(base.get(name) or {}) or _configured_dtype(base)
            values[name]["dtype"] = copied_dtype if is_copied else values["dtype"]
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _configured_dtype(section: Mapping[str, Any]) -> str | None:
    """The dtype in a section of a config.json, under its name of today or of transformers 4."""
    return section.get("dtype") or section.get("torch_dtype")


def _own_memory(tensor: Tensor) -> Tensor:
    """A tensor in memory of its own, as safetensors wants it."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
