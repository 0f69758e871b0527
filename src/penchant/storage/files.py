"""Files and folders that are written completely or not at all, their locks, and errors of full disks."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from penchant.errors import CheckpointError, ConfigError, DiskFullError, reason_of


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
    if missing_keys := [key for key in keys if key not in record]:
        raise _damaged(file, f"it lacks {', '.join(missing_keys)}", fix)
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
            fix=f"free some space, then resume with: {resume_command}",
        ) from error


_RESUMES_ITSELF: ContextVar[bool] = ContextVar("_RESUMES_ITSELF", default=False)


def resume_command(command: str) -> str:
    """What to type to resume a run: its own command, or that of the verb which trains it and resumes all its runs."""
    return "the same command" if _RESUMES_ITSELF.get() else command


@contextmanager
def resumable_disk_errors(folder: Path) -> Iterator[None]:
    """`disk_errors` for a command that resumes where it stopped when it is run again; the error says so.

    So does `resume_command` inside it.

    Raises:
        DiskFullError: there was no room.
    """
    previous = _RESUMES_ITSELF.set(True)
    try:
        with disk_errors(folder, "the same command"):
            yield
    except DiskFullError as error:
        raise DiskFullError(
            error.what,
            where=error.where,
            fix="free some space, then give the same command again: it resumes where it stopped",
        ) from error
    finally:
        _RESUMES_ITSELF.reset(previous)


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
    # safetensors and tokenizers know the number in words only, tokenizers in a bare Exception.
    is_of_rust = type(error) is Exception or type(error).__name__ == "SafetensorError"
    return is_of_rust and any(f"(os error {number})" in str(error) for number in DISK_FULL_ERRNOS)


def _is_short_write(error: BaseException) -> bool:
    """Whether torch could not write all of a file: its error does not say why."""
    return isinstance(error, RuntimeError) and "unexpected pos" in str(error)


def _has_no_room(folder: Path) -> bool:
    """Whether the folder's disk has less than a megabyte left."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return existing is not None and shutil.disk_usage(existing).free < 2**20


NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_WINDOWS_OFFSET = 1 << 30
"""The byte that Windows locks, behind the text: a locked byte cannot be read there."""

_logger = logging.getLogger(__name__)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the operating system frees it when the process ends, however it ends.

    The folder is made where it is missing, and removed again if nothing was written into it.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    file = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _open_and_lock(file)
    except FileExistsError as error:
        raise ConfigError("output is a file", where=str(folder), fix="name a folder") from error
    except OSError as error:
        if is_full(error):
            raise
        raise ConfigError(
            f"the output folder cannot be written: {error.strerror}",
            where=str(folder),
            fix="name a folder you can write to",
        ) from error
    try:
        yield
    finally:
        _release(handle, file)
        for path in missing:
            with suppress(OSError):  # Folders that were written into stay.
                path.rmdir()


def _open_and_lock(file: Path) -> int:
    """A locked handle of the lock file, into which the process's id and machine are written.

    Raises:
        ConfigError: another process holds the lock.
        OSError: the file cannot be written.
    """
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            _lock(handle)
        except OSError as error:
            holder = os.pread(handle, 200, 0) if hasattr(os, "pread") else file.read_bytes()
            os.close(handle)
            raise ConfigError(
                f"another process is writing this folder: {holder.decode(errors='replace') or 'it just began'}",
                where=str(file.parent),
                fix="wait for that process, or end it; or name another folder: output=DIR",
            ) from error
        if _is_named(handle, file):
            try:
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
            except OSError:  # A full disk; this process may start again once there is room.
                _release(handle, file)
                raise
            return handle
        os.close(handle)


def _release(handle: int, file: Path) -> None:
    """Remove the lock file, then free the lock."""
    # Removed while locked: a process that opened the file meanwhile sees that its name is gone, and opens it anew.
    with suppress(OSError):
        file.unlink()
    os.close(handle)


def _is_named(handle: int, file: Path) -> bool:
    """Whether the open file is still the one that has this name."""
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _lock(handle: int) -> None:
    """Take the lock on an open file.

    Raises:
        OSError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        _lock_on_windows(handle)
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _logger.warning("the output's file system has no locks: start no second process on the same folder")


def _lock_on_windows(handle: int) -> None:
    import msvcrt  # type: ignore[import-not-found,unused-ignore]

    os.lseek(handle, _WINDOWS_OFFSET, os.SEEK_SET)
    msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    os.lseek(handle, 0, os.SEEK_SET)
