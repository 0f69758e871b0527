"""Tensors of all processes in one folder: safetensors files of each process, and an index in JSON.

    FOLDER/rank-00000-00000.safetensors    a process's shards; another file every `PART` bytes
    FOLDER/index.json                      of each tensor its dtype, shape, and where its shards begin

They are read back at any number of processes: each reads what overlaps its own shards. Nothing here is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from penchant.errors import CheckpointError

FORMAT = 2
INDEX = "index.json"
PART = 2**30
"""Bytes of a file: a GPU's tensors pass through the host's memory a file at a time."""

Tensors = Mapping[str, Tensor]
ShardIndex = dict[str, list[dict[str, Any]]]
"""Of each tensor one process's shards: their file, offset in every dimension, and shape."""


def write_shards(tensors: Tensors, folder: Path, rank: int) -> ShardIndex:
    """Write this process's shards; returns where they are."""
    index: ShardIndex = {}
    for number, part in enumerate(_parts(tensors, rank)):
        file = f"rank-{rank:05d}-{number:05d}.safetensors"
        save_file({name: shard.contiguous() for name, (shard, _) in part.items()}, folder / file)
        for name, (shard, offset) in part.items():
            index.setdefault(name, []).append({"file": file, "offset": offset, "shape": list(shard.shape)})
    return index


def write_index(tensors: Tensors, folder: Path, shards: list[ShardIndex]) -> None:
    """Write the index of what all processes wrote."""
    index = {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "shards": [shard for of_rank in shards for shard in of_rank.get(name, [])],
        }
        for name, tensor in tensors.items()
    }
    (folder / INDEX).write_text(json.dumps({"format": FORMAT, "tensors": index}), encoding="utf-8")


def read_shards(tensors: Tensors, folder: Path) -> None:
    """Fill these tensors in place, each with its own part.

    Raises:
        CheckpointError: the index is of another format, or does not have these tensors.
    """
    index = _read_index(folder)
    try:
        with ExitStack() as stack:

            @cache
            def open_file(file: str) -> Any:
                return stack.enter_context(safe_open(folder / Path(file).name, framework="pt"))

            for name, tensor in tensors.items():
                _fill(tensor, index[name], partial(_slice, open_file, name))
    except (KeyError, TypeError, ValueError, IndexError, OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the tensor {name} cannot be read: {' '.join(str(error).split())}",
            where=str(folder),
            fix=f"delete {folder} and resume again: the run goes on from the checkpoint before it",
        ) from error


def _parts(tensors: Tensors, rank: int) -> Iterator[dict[str, tuple[Tensor, list[int]]]]:
    """This process's shards with their offsets, up to `PART` bytes at a time."""
    part: dict[str, tuple[Tensor, list[int]]] = {}
    size = 0
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor) and rank > 0:
            continue  # All processes have the same.
        shard, offset = _local(tensor)
        if part and size + shard.nbytes > PART:
            yield part
            part, size = {}, 0
        if shard.numel():
            part[name] = shard, offset
            size += shard.nbytes
    if part:
        yield part


def _local(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """This process's shard, and where it begins in every dimension."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), [0] * tensor.dim()
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local().detach(), list(offset)


def _read_index(folder: Path) -> dict[str, Any]:
    fix = "start the run again in a new folder (output=DIR), or resume it with the Penchant that wrote it"
    if (folder / ".metadata").exists():
        raise CheckpointError(
            f"the checkpoint has format 1 (torch.distributed.checkpoint); this Penchant reads format {FORMAT}, because "
            "reading format 1 runs code that its files may hold",
            where=str(folder),
            fix=fix,
        )
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        number, entries = index["format"], index["tensors"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint has no readable {INDEX}", where=str(folder), fix=fix) from error
    if number != FORMAT:
        raise CheckpointError(
            f"the checkpoint has format {number}; this Penchant reads format {FORMAT}", where=str(folder), fix=fix
        )
    return dict(entries)


def _slice(open_file: Callable[[str], Any], name: str, file: str) -> Any:
    """A tensor in a file, to be indexed; nothing is read yet."""
    return open_file(file).get_slice(name)


def _fill(tensor: Tensor, entry: Mapping[str, Any], open_shard: Callable[[str], Any]) -> None:
    """Copy what the files hold of this process's part of a tensor.

    Args:
        open_shard: the tensor's shard in a file, to be indexed.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if entry["dtype"] != dtype or entry["shape"] != list(tensor.shape):
        raise ValueError(f"it is {entry['dtype']} {entry['shape']} there, and {dtype} {list(tensor.shape)} in this run")
    target, start = _local(tensor)
    filled = 0
    for shard in entry["shards"]:
        # Each dimension's overlap, counted from the tensor's own beginning.
        low = [max(a, b) for a, b in zip(start, shard["offset"], strict=True)]
        ends = zip(start, target.shape, shard["offset"], shard["shape"], strict=True)
        high = [min(a + length, b + size) for a, length, b, size in ends]
        if any(first >= last for first, last in zip(low, high, strict=True)):
            continue
        values = open_shard(shard["file"])[_range(low, high, shard["offset"])]
        target[_range(low, high, start)].copy_(values)
        filled += values.numel()
    if filled != target.numel():
        raise ValueError(f"the files hold {filled} of its {target.numel()} values")


def _range(low: list[int], high: list[int], start: list[int]) -> Any:
    """As an index; of a scalar the only one it has."""
    return (
        ...
        if not low
        else tuple(slice(first - zero, last - zero) for first, last, zero in zip(low, high, start, strict=True))
    )
