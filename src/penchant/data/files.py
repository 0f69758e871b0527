"""Rows of a source: a file, a folder of files, a folder saved by `datasets`, or a data set of the hub."""

from __future__ import annotations

import difflib
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from penchant.data.files_text import Rows, csv_file, json_file, json_lines, tsv_file, typed_cells
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
    return _table_rows(dataset, split, folder.name)


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
    return _table_rows(dataset, split, source)


def _table_rows(dataset: Any, split: str | None, name: str) -> Rows:
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


READERS: dict[str, Callable[[BinaryIO, str], Rows]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_file,
    ".csv": csv_file,
    ".tsv": tsv_file,
    ".parquet": parquet_file,
}
COMPRESSIONS = (".gz", ".zst")
MAX_BYTES = 2**32
"""Limit on the bytes of an unpacked file."""
KINDS = f"{', '.join(READERS)}, each also with {' or '.join(COMPRESSIONS)}"
SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "validation": "validation",
    "valid": "validation", "val": "validation", "dev": "validation", "eval": "test",
}  # fmt: skip
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def read_rows(
    source: str | Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a source, each with its location, as in ``pairs.jsonl, line 3`` (lines and rows count from 1).

    Args:
        source: a file with an ending of `READERS`, also with one of `COMPRESSIONS`; a folder of such files; a folder
            that `datasets` saved; or a hub id.
        split: name of a split of the folder or hub data set.
        columns: the source's column name by Penchant's.
        max_bytes: limit on the bytes of an unpacked file.

    Raises:
        DataError: the source is missing, empty, damaged, or of an unknown kind.
    """
    empty = True
    for where, row in _rows(source, split, columns or {}, max_bytes):
        empty = False
        yield where, row
    if empty:
        name = Path(source).absolute().name
        raise DataError("it is empty; expected at least one row", where=name, fix="name another file")


def _rows(source: str | Path, split: str | None, columns: Mapping[str, str], max_bytes: int) -> Rows:
    path = Path(source).absolute()
    if path.is_dir():
        if not is_saved(path):
            for file in _data_files(path, split):
                yield from _file_rows(file, f"{path.name}/{file.name}", columns, max_bytes)
            return
        rows = saved_folder(path, split)
    elif path.exists():
        if split is not None:
            raise no_splits(split, path.name)
        yield from _file_rows(path, path.name, columns, max_bytes)
        return
    elif HUB_ID.fullmatch(str(source)) and ending_of(path) not in READERS:
        rows = hub_dataset(str(source), split)
    else:
        raise _missing(Path(source))
    for where, row in rows:
        yield where, _rename_columns(row, columns, where)


def ending_of(path: Path) -> str:
    """A file's last ending that is not one of `COMPRESSIONS`, in lower case."""
    endings = [ending.lower() for ending in path.suffixes]
    return next((ending for ending in reversed(endings) if ending not in COMPRESSIONS), "")


def is_data_file(path: Path) -> bool:
    """Whether a file has an ending of `READERS`, compressed or not, and is not hidden."""
    return path.name[:1] != "." and ending_of(path) in READERS


def stem_of(path: Path) -> str:
    """A data file's name without its ending and the ending of its compression."""
    name = path.name
    for ending in (*COMPRESSIONS, ending_of(path)):
        name = name[: len(name) - len(ending)] if name.lower().endswith(ending) else name
    return name


def unread_files(source: str | Path, split: str | None = None) -> list[str]:
    """Names of the unread files and folders in a data folder, without hidden ones; folders end in a slash."""
    folder = Path(source).absolute()
    if not folder.is_dir() or is_saved(folder):
        return []
    data_files = set(_data_files(folder, split))
    paths = sorted(path for path in folder.iterdir() if path not in data_files and path.name[0] != ".")
    return [path.name + "/" * path.is_dir() for path in paths]


def _file_rows(path: Path, name: str, columns: Mapping[str, str], max_bytes: int) -> Rows:
    ending = ending_of(path)
    if ending not in READERS:
        raise DataError(
            f"unknown kind of file '{ending or path.name}'; expected {KINDS}",
            where=name,
            fix="save it as one of these and name it so",
        )
    with open_data_file(path, name, max_bytes) as stream:
        for where, row in READERS[ending](stream, name):
            row_values = _rename_columns(row, columns, where)
            yield where, typed_cells(row_values, where) if ending in (".csv", ".tsv") else row_values


@contextmanager
def open_data_file(path: Path, name: str, max_bytes: int = MAX_BYTES) -> Iterator[BinaryIO]:
    """A stream of a file's bytes, decompressed where its name ends in .gz or .zst.

    Args:
        path: the file.
        name: its name in errors.
        max_bytes: limit on the bytes of an unpacked file.

    Raises:
        DataError: the file cannot be read, is damaged, or unpacks to more than `max_bytes`.
    """
    try:
        with _stream(path, max_bytes) as stream:
            yield stream
    except _TooLarge as error:
        raise DataError(
            f"the compressed file unpacks to more than {max_bytes} bytes",
            where=name,
            fix=f"if that is right: data.max_bytes={4 * max_bytes}, or unpack it (gunzip, unzstd) and name the "
            "unpacked file",
        ) from error
    except gzip.BadGzipFile as error:
        raise DataError(
            f"not a whole gzip file: {error}", where=name, fix="compress it again, or take .gz off its name"
        ) from error
    except _Zstandard as error:
        raise DataError(f"the zst data is cut or damaged: {error}", where=name, fix="copy it again") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"the gzip data is cut or damaged: {error}", where=name, fix="copy it again") from error
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror or error}", where=name, fix="check the file") from error


class _Zstandard(Exception):
    """A .zst file is damaged; the message is pyarrow's."""


class _ZstandardFile(io.RawIOBase):
    """Decompressed bytes of a .zst file, as a stream with lines, which pyarrow's stream does not have."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self._stream = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path), "rb"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data: bytes = self._stream.read(len(buffer))
        except OSError as error:
            raise _Zstandard(str(error)) from error
        buffer[: len(data)] = data
        return len(data)


class _TooLarge(Exception):
    """A compressed file unpacks to more bytes than the limit."""


class _Bounded(io.RawIOBase):
    """A decompressed stream that raises `_TooLarge` after `max_bytes` bytes."""

    def __init__(self, stream: Any, max_bytes: int) -> None:
        self._stream, self._remaining = stream, max_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._stream.readinto(buffer)
        self._remaining -= count
        if self._remaining < 0:
            raise _TooLarge
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def _stream(path: Path, max_bytes: int) -> BinaryIO:
    ending = path.suffix.lower()
    if ending not in COMPRESSIONS:
        return path.open("rb")
    unpacked = gzip.GzipFile(path) if ending == ".gz" else _ZstandardFile(path)
    return io.BufferedReader(_Bounded(unpacked, max_bytes), 2**16)


def _rename_columns(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """The row with the source's column names replaced by Penchant's."""
    our_names = {name: ours for ours, name in columns.items()}
    for ours, source_name in columns.items():
        if ours in row and ours not in our_names:
            conflict = "there is a column" if source_name in row else "this row has none of that name, but has a column"
            raise DataError(
                f"'{source_name}' is to be read as '{ours}', but {conflict} '{ours}'",
                where=where,
                fix=f"rename that column: data.columns={{{ours}: {source_name}, unused: {ours}}}"
                if source_name in row
                else f"correct the name, or leave '{ours}' out of data.columns",
            )
    return {our_names.get(name, name): value for name, value in row.items()}


def _data_files(folder: Path, split: str | None) -> list[Path]:
    """The data files of a folder that belong to one split."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and is_data_file(file))
    if not files:
        raise DataError(f"a folder without data files; expected {KINDS}", where=folder.name, fix="name a file")
    splits = {file: _split_of(file) for file in files}
    split_names = list(dict.fromkeys(split_name for split_name in splits.values() if split_name))
    if split is None and len(split_names) <= 1:
        return files
    if not split_names:
        raise no_splits(split or "", folder.name)
    chosen_split = pick_split(split_names, split, folder.name)
    return [file for file in files if splits[file] == chosen_split]


def _split_of(file: Path) -> str | None:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", file.name.split(".")[0])
    return next((SPLITS[word.lower()] for word in words if word.lower() in SPLITS), None)


def _missing(path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError("there is no such file, nor its folder", where=str(path), fix="check the path")
    names = sorted(item.name for item in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, 1, cutoff=0.5)
    return DataError(
        "there is no such file",
        where=str(path),
        fix=f"did you mean {folder / near[0]}?" if near else "check the path, or name a hub id as org/name",
    )
