"""Rows of Parquet files, folders saved by `datasets`, and hub data sets."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from penchant.data.files_text import Rows
from penchant.errors import DataError, reason_of


def parquet_file(stream: BinaryIO, name: str) -> Rows:
    """Rows of a Parquet file, each with its location."""
    import pyarrow
    import pyarrow.parquet

    # A Parquet reader starts at the end of the file, which is slow to reach in a compressed stream.
    seekable = io.BytesIO(stream.read()) if name.lower().endswith((".gz", ".zst")) else stream
    number = 0
    try:
        if not seekable.read(1):
            return
        for batch in pyarrow.parquet.ParquetFile(seekable).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{name}, row {number}", _without_padding(row)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        position = f" after row {number}" if number else ""
        raise DataError(
            f"a broken Parquet file{position}: {reason_of(error)}", where=name, fix="copy or write it again"
        ) from error


def is_saved(folder: Path) -> bool:
    """Whether the folder was written by `save_to_disk` of the `datasets` library."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def saved_folder(folder: Path, split: str | None) -> Rows:
    """Rows of a folder that `datasets` saved, each with its location."""
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
    # The library raises exceptions of many classes for a folder that it cannot load.
    except Exception as error:
        raise DataError(
            f"a `datasets` folder that does not load: {reason_of(error)}",
            where=folder.name,
            fix="save it again with save_to_disk",
        ) from error
    return _rows(dataset, split, folder.name)


def hub_dataset(source: str, split: str | None) -> Rows:
    """Rows of a data set of the hub, each with its location."""
    import datasets

    try:
        dataset = datasets.load_dataset(source)
    # The library has no common class for a data set that is absent, gated or broken, or for a missing connection.
    except Exception as error:
        raise DataError(
            f"no file or folder of this name here, and the hub did not give a data set: {reason_of(error)}",
            where=source,
            fix=f"name a local file; or download it first: hf download --repo-type dataset {source} --local-dir DIR",
        ) from error
    return _rows(dataset, split, source)


def _rows(dataset: Any, split: str | None, name: str) -> Rows:
    import datasets

    if isinstance(dataset, datasets.DatasetDict):
        split = pick_split(list(dataset), split, name)
        dataset, name = dataset[split], f"{name}[{split}]"
    elif split is not None:
        raise no_splits(split, name)
    for number, row in enumerate(dataset, 1):
        yield f"{name}, row {number}", _without_padding(row)


def _without_padding(row: dict[str, Any]) -> dict[str, Any]:
    """The row without the null fields of its objects, which a table adds to give all objects of a column one type."""
    return {name: _unpadded(value) for name, value in row.items()}


def _unpadded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unpadded(inner) for name, inner in value.items() if inner is not None}
    return [_unpadded(inner) for inner in value] if isinstance(value, list) else value


def pick_split(splits: Iterable[str], split: str | None, name: str) -> str:
    """The name of the requested split, or of the only one.

    Raises:
        DataError: no split has the requested name, or there are several and none was requested.
    """
    split_names = list(splits)
    if split is None and len(split_names) == 1:
        return split_names[0]
    if split in split_names:
        return split
    near = difflib.get_close_matches(split or "train", split_names, 1) or split_names[:1]
    raise DataError(
        f"{'several splits' if split is None else f'no split {split!r}'}; it has {', '.join(split_names)}",
        where=name,
        fix=f"data.split={near[0]}",
    )


def no_splits(split: str, name: str) -> DataError:
    """The error for a split of a source that has none."""
    return DataError(
        f"split '{split}' was asked for, but there are no splits here", where=name, fix="leave data.split out"
    )
