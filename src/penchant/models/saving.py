"""A model written in Hugging Face format, with what its checkpoint's files held beside its weights, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from penchant.errors import ModelError
from penchant.models.gguf.reading import gguf_library, is_gguf
from penchant.models.loading import adapter_base, load_config
from penchant.models.multimodal import text_config
from penchant.models.source_checkpoint import (
    INDEX,
    MISSING_AS_NONE,
    Checkpoint,
    checkpoint_of,
    open_weights,
    tensor_names,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SaveDtype = Literal["auto", "float32", "bfloat16", "float16"]

_BY_SAFETENSORS = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BY_GGUF = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BY_NAME = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class SavedDtype:
    """The dtype of weights on disk.

    Attributes:
        dtype: dtype of all weights but the exceptions.
        exceptions: dtypes of weights that the base holds in another one, as a router's bias in float32, by the
            weight's name in the model.
    """

    dtype: torch.dtype
    exceptions: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The dtype's name in a config.json, as ``bfloat16``."""
        return str(self.dtype).removeprefix("torch.")

    def safe_for(self, weights: Mapping[str, Tensor]) -> SavedDtype:
        """This dtype, or float32 where a weight (of any shape) is beyond float16's range and would become infinite."""
        largest = torch.finfo(self.dtype).max
        if self.dtype != torch.float16 or all(
            not weight.is_floating_point() or not weight.numel() or bool(weight.abs().max() <= largest)
            for weight in weights.values()
        ):
            return self
        return SavedDtype(torch.float32)

    def round_weights(self, model: nn.Module) -> None:
        """Cast a model's parameters and buffers in place."""
        for name, weight in (*model.named_parameters(), *model.named_buffers()):
            weight.data = self.cast(name, weight.data)

    def cast(self, name: str, weight: Tensor) -> Tensor:
        """A weight of any shape as it is written; integers stay what they are."""
        return weight.to(self.exceptions.get(name, self.dtype)) if weight.is_floating_point() else weight


def saved_dtype(model: nn.Module, source: str, choice: SaveDtype) -> SavedDtype:
    """The dtype to write a model's weights in.

    Args:
        model: as loaded from `source`, trained or not.
        source: folder, hub id, GGUF file, or an adapter folder, whose base counts.
        choice: ``auto`` is the dtype of most weights in the base's files that the model uses, and of each weight its
            own; quantised ones become float32.
    """
    if choice != "auto":
        return SavedDtype(_BY_NAME[choice])
    checkpoint = checkpoint_of(model)
    checkpoint_dtype = None if checkpoint is None else _checkpoint_dtype(checkpoint)
    if checkpoint_dtype is not None:
        return checkpoint_dtype
    base = source
    while (base_of_adapter := adapter_base(base)) is not None:
        base = base_of_adapter
    if is_gguf(base):
        return _gguf_dtype(base)
    configured_dtype = str(getattr(load_config(base, weights=False), "dtype", None)).removeprefix("torch.")
    return SavedDtype(_BY_NAME.get(configured_dtype, torch.float32))


def stored_types(source: Path) -> list[str]:
    """Types of the weights in a folder's safetensors or a GGUF file, most frequent first; ``float32``, ``Q4_1``."""
    sizes: Counter[str] = Counter()
    if source.is_file():
        for tensor in gguf_library().GGUFReader(source).tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        return [name for name, _ in sizes.most_common()]
    for file in source.glob("*.safetensors"):
        for _, kind, elements in _header(file):
            sizes[str(_BY_SAFETENSORS.get(kind, kind)).removeprefix("torch.")] += elements
    return [name for name, _ in sizes.most_common()]


def _checkpoint_dtype(checkpoint: Checkpoint) -> SavedDtype | None:
    """The dtype by the headers of a model's safetensors, without its towers; None where it has no safetensors."""
    by_weight: dict[str, torch.dtype] = {}
    sizes: Counter[torch.dtype] = Counter()
    for file in checkpoint.files:
        for name, kind, elements in _header(file) if file.suffix == ".safetensors" else ():
            if name in checkpoint.targets and kind in _BY_SAFETENSORS:
                by_weight[checkpoint.targets[name]] = _BY_SAFETENSORS[kind]
                sizes[_BY_SAFETENSORS[kind]] += elements
    if not sizes:
        return None
    dtype = sizes.most_common(1)[0][0]
    return SavedDtype(dtype, {name: weight_dtype for name, weight_dtype in by_weight.items() if weight_dtype != dtype})


def _header(file: Path) -> Iterator[tuple[str, str, int]]:
    """Name, dtype and number of elements of each tensor in a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it has keys, and is no mapping
            part: Any = tensors.get_slice(name)
            yield name, part.get_dtype(), int(torch.Size(part.get_shape()).numel())


def _gguf_dtype(source: str) -> SavedDtype:
    types = stored_types(Path(source))
    return SavedDtype(_BY_GGUF.get(types[0], torch.float32) if types else torch.float32)


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
        weights: the state dict to write, in the model's shapes, tied weights once; None is the model's own.
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
    missing_names = sorted(checkpoint.converted - values.keys())
    if missing_names:
        raise ModelError(
            f"the weights cannot be written under the names of the model's files; the first is {missing_names[0]}",
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
