"""In which dtype weights are written: that of the model they come from, unless another is asked for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from penchant.engine.gguf_reading import gguf_library, is_gguf
from penchant.engine.loading import adapter_base, load_config

SaveDtype = Literal["auto", "float32", "bfloat16", "float16"]

_BY_SAFETENSORS = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BY_GGUF = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TEXT_PARTS = ("text_config", "language_config", "llm_config", "decoder")
_BY_NAME = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class SavedDtype:
    """The dtype of weights on disk.

    Attributes:
        dtype: of all weights but the exceptions.
        exceptions: by name the dtype of weights that the base holds in another one, as a router's bias in float32.
    """

    dtype: torch.dtype
    exceptions: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As in a config.json: ``bfloat16``."""
        return str(self.dtype).removeprefix("torch.")

    def fitting(self, weights: Mapping[str, Tensor]) -> SavedDtype:
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


def saved_dtype(source: str, choice: SaveDtype) -> SavedDtype:
    """The dtype to write the weights of a model in that was made from `source`.

    Args:
        source: folder, hub id, GGUF file, or an adapter folder, whose base counts.
        choice: ``auto`` is the dtype of most weights in the base's files; quantised ones become float32.
    """
    if choice != "auto":
        return SavedDtype(_BY_NAME[choice])
    base = source
    while (below := adapter_base(base)) is not None:
        base = below
    stored = _of_gguf(base) if is_gguf(base) else _of_folder(Path(base))
    if stored is None:
        configured = str(getattr(load_config(base, weights=False), "dtype", None)).removeprefix("torch.")
        stored = SavedDtype(_BY_NAME.get(configured, torch.float32))
    return stored


def write_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Write the language part's dtype into a folder's config.json: transformers writes that of weights in memory."""
    file = folder / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    name = str(dtype).removeprefix("torch.")
    # Other parts, as an image tower, are not trained and keep their dtype.
    for section in (values, *(values[part] for part in _TEXT_PARTS if isinstance(values.get(part), dict))):
        for key in ("dtype", "torch_dtype"):
            if key in section:
                section[key] = name
    values["dtype"] = name
    values.pop("torch_dtype", None)
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def stored_types(source: Path) -> list[str]:
    """Types of the weights in a folder's safetensors or in a GGUF file, that of most first; ``float32``, ``Q4_1``."""
    sizes: Counter[str] = Counter()
    if source.is_file():
        for tensor in gguf_library().GGUFReader(source).tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        return [name for name, _ in sizes.most_common()]
    for file in source.glob("*.safetensors"):
        for _, kind, elements in _header(file):
            sizes[str(_BY_SAFETENSORS.get(kind, kind)).removeprefix("torch.")] += elements
    return [name for name, _ in sizes.most_common()]


def _of_folder(folder: Path) -> SavedDtype | None:
    """From the headers of a folder's safetensors; None where it has none."""
    by_name: dict[str, torch.dtype] = {}
    sizes: Counter[torch.dtype] = Counter()
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        for name, kind, elements in _header(file):
            if kind in _BY_SAFETENSORS:
                by_name[name] = _BY_SAFETENSORS[kind]
                sizes[by_name[name]] += elements
    if not sizes:
        return None
    dtype = sizes.most_common(1)[0][0]
    return SavedDtype(dtype, {name: stored for name, stored in by_name.items() if stored != dtype})


def _header(file: Path) -> Iterator[tuple[str, str, int]]:
    """Name, dtype and number of elements of each tensor in a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it has keys, and is no mapping
            part: Any = tensors.get_slice(name)
            yield name, part.get_dtype(), int(torch.Size(part.get_shape()).numel())


def _of_gguf(source: str) -> SavedDtype:
    types = stored_types(Path(source))
    return SavedDtype(_BY_GGUF.get(types[0], torch.float32) if types else torch.float32)
