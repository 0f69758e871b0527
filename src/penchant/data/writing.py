"""Writing of groups as JSON lines in the format `penchant`, which `read_groups` reads back unchanged."""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.data.groups import PreferenceGroup
from penchant.data.messages import context_of
from penchant.errors import DataError

FACTS = ("comparisons", "scores", "ranks", "preferred", "labels", "source")
READ_COLUMNS = frozenset({
    "id", "prompt", "candidates", "weight", *FACTS, "chosen", "pairwise", "ranking", "rank", "best", "data",
    "annotations", "context", "completions", "system", "tools", "documents", "chat_template_kwargs",
})  # fmt: skip
"""Columns that a reader would read, or detect as another format."""
PREFIX = "original_"


def write_groups(groups: Sequence[PreferenceGroup], path: str | Path) -> None:
    """Write groups to a new .jsonl or .jsonl.gz file; on an error no file is left.

    Raises:
        DataError: the file exists, its name has another ending, its folder does not exist, there are no groups, or
            a group contains a value that JSON cannot represent.
    """
    path = Path(path)
    _check(path, groups)
    # Equal groups give equal bytes: the header has no time stamp and no file name.
    content = b"".join(_lines(groups, path))
    data = gzip.compress(content, mtime=0) if path.suffix == ".gz" else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"it cannot be written: {error.strerror}", where=str(path), fix="name another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_anew(groups: Sequence[PreferenceGroup], path: str | Path) -> None:
    """Write groups as `write_groups` does, and replace an existing file; equal groups give equal bytes."""
    Path(path).unlink(missing_ok=True)
    write_groups(groups, path)


def _check(path: Path, groups: Sequence[PreferenceGroup]) -> None:
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError("groups are written as .jsonl or .jsonl.gz", where=str(path), fix=f"{path.stem}.jsonl")
    if path.exists():
        raise DataError("the file exists already", where=str(path), fix="name a new file, or remove this one first")
    if not path.parent.is_dir():
        raise DataError("its folder does not exist", where=str(path), fix=f"mkdir -p {path.parent}")
    if not groups:
        raise DataError("there are no groups to write", where=str(path), fix="write at least one")


def _lines(groups: Sequence[PreferenceGroup], path: Path) -> Iterable[bytes]:
    for number, group in enumerate(groups, 1):
        try:
            line = json.dumps(row_of(group), ensure_ascii=False, allow_nan=False)
            yield line.encode() + b"\n"
        except (ValueError, TypeError) as error:
            raise DataError(
                f"group {number} (id {group.id!r}) cannot be written: {error}",
                where=str(path),
                fix="scores and weights are finite numbers; texts have no lone surrogates",
            ) from error


def row_of(group: PreferenceGroup) -> dict[str, Any]:
    """The group as a row of the format `penchant`."""
    row: dict[str, Any] = {"id": group.id, "prompt": group.prompt, "candidates": group.candidates}
    row |= context_of(group.prompt).columns()
    row |= {name: value for name in FACTS if (value := getattr(group, name)) is not None}
    if group.weight != 1:
        row["weight"] = group.weight
    return row | {output_column_name(name, group.extra): _plain(value) for name, value in group.extra.items()}


def output_column_name(column: str, extra: Mapping[str, Any]) -> str:
    """The name under which an unread column is written, so that no reader takes it for a column of the format.

    Args:
        column: name of the column in the source.
        extra: all unread columns of the group, whose names are not used twice.
    """
    if column not in READ_COLUMNS:
        return column
    name = PREFIX + column
    while name in extra:
        name = PREFIX + name
    return name


def renamed_columns(groups: Sequence[PreferenceGroup]) -> list[str]:
    """Notes for the user on the columns that are written under another name."""
    names = dict.fromkeys((name, output_column_name(name, group.extra)) for group in groups for name in group.extra)
    return [f"column {name} is written as {new_name}" for name, new_name in names if name != new_name]


def _plain(value: Any) -> Any:
    """A table's value as JSON: times as text, bytes as base64, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if isinstance(value, str | int | None) else str(value)
