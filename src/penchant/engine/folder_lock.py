"""A lock on an output folder: one process writes it at a time, and a killed process leaves no lock behind."""

from __future__ import annotations

import errno
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penchant.engine.folders import is_full
from penchant.errors import ConfigError

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
        # Removed while locked: a process that opened the file meanwhile sees that its name is gone, and opens it anew.
        with suppress(OSError):
            file.unlink()
        os.close(handle)
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
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
            return handle
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
