"""Folders that are written completely or not at all, and errors of full disks."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penchant.errors import DiskFullError

DISK_FULL_ERRNOS = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
"""Error numbers of a full disk, an exhausted quota, and a file beyond the size limit."""


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into; it is renamed to `folder` once all of it is on disk."""
    temporary = folder.with_name(f".writing-{folder.name}")
    new_folder(temporary)
    yield temporary
    for path in temporary.rglob("*"):
        sync(path)
    sync(temporary)
    temporary.rename(folder)
    sync(folder.parent)


def new_folder(path: Path) -> None:
    """Create an empty folder in place of an earlier folder, file or link; the target of a link stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def sync(path: Path) -> None:
    """Force a file, or a folder's entries (names, renames), to disk; Windows can do so with files alone."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(folder: Path, resume_command: str) -> Iterator[None]:
    """Turn a full disk, however deep a library wrapped it, into one clear error.

    Args:
        folder: on the disk that is written.
        resume_command: the command to type once there is room.

    Raises:
        DiskFullError: there was no room.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not is_full(error) and not (_is_short_write(error) and _has_no_room(folder)):
            raise
        raise DiskFullError(
            "the disk is full; what was saved before is untouched",
            where=str(folder),
            fix=f"free some space, then go on with: {resume_command}",
        ) from error


@contextmanager
def resumable_disk_errors(folder: Path) -> Iterator[None]:
    """`disk_errors` for a command that resumes where it stopped when it is run again; the error says so.

    Raises:
        DiskFullError: there was no room.
    """
    try:
        with disk_errors(folder, "the same command"):
            yield
    except DiskFullError as error:
        raise DiskFullError(
            error.what,
            where=error.where,
            fix="free some space, then give the same command again: it resumes where it stopped",
        ) from error


def is_full(error: BaseException) -> bool:
    """Whether a full disk is behind an exception, however deep a library wrapped it."""
    cause: BaseException | None = error
    while cause is not None:
        if _is_full(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in DISK_FULL_ERRNOS
    # safetensors has an error of its own, which knows the number in words only.
    return type(error).__name__ == "SafetensorError" and any(
        f"(os error {number})" in str(error) for number in DISK_FULL_ERRNOS
    )


def _is_short_write(error: BaseException) -> bool:
    """Whether torch could not write all of a file: its error does not say why."""
    return isinstance(error, RuntimeError) and "unexpected pos" in str(error)


def _has_no_room(folder: Path) -> bool:
    """Whether the folder's disk has less than a megabyte left."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return existing is not None and shutil.disk_usage(existing).free < 2**20
