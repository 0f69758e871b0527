"""The dtype in which weights are written: that of the model they come from, unless another is configured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from penchant.engine.checkpoint import Checkpoint, checkpoint_of
from penchant.engine.gguf_reading import gguf_library, is_gguf
from penchant.engine.loading import adapter_base, load_config

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
        """This dtype, or float32 where a weight is beyond float16's largest number and would become infinite."""
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
        """A weight as it is written; integers stay what they are."""
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
