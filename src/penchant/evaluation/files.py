"""Files of a run: written whole or not at all, and named by an error where they are damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from penchant.errors import CheckpointError, ConfigError, reason_of


def write_atomically(file: Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing, making its folder where needed; lone surrogates become ``\\udXXX``.

    Raises:
        ConfigError: the file cannot be written.
    """
    aside = file.with_name(f".writing-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Never through what stands there, which may be a link to another file.
        aside.unlink(missing_ok=True)
        with aside.open("x", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, file)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise ConfigError(
            f"cannot be written: {error.strerror}", where=str(file), fix="name a file in a folder you can write to"
        ) from error


def read_record(file: Path, keys: Collection[str], fix: str) -> dict[str, Any]:
    """A JSON object that an earlier start wrote.

    Args:
        keys: those it must have.
        fix: what to do where it is damaged.

    Raises:
        CheckpointError: it cannot be read, is no JSON object, or lacks a key.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file, reason_of(error), fix) from error
    if not isinstance(record, dict):
        raise _damaged(file, f"it holds no object, but {type(record).__name__}", fix)
    if missing := [key for key in keys if key not in record]:
        raise _damaged(file, f"it lacks {', '.join(missing)}", fix)
    return record


def read_records(file: Path, fix: str) -> list[dict[str, Any]]:
    """The JSON objects of a file with one a line.

    Raises:
        CheckpointError: the file, or a line of it, cannot be read.
    """
    records = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise _damaged(file, reason_of(error), fix) from error
    for number, line in enumerate(lines, 1):
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise _damaged(file, f"line {number}: {reason_of(error)}", fix) from error
    return records


def _damaged(file: Path, reason: str, fix: str) -> CheckpointError:
    return CheckpointError(f"the file is damaged: {reason}", where=str(file), fix=fix)
