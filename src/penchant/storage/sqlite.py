"""SQLite files that several processes write to, with SQLite's failures reported as Penchant errors."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.errors import ConfigError, DataError, DiskFullError, PenchantError

DISK_FULL_CODES = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
"""SQLite's codes for a full disk; the second is raised where its shared-memory file has no room, without saying why."""
TIMEOUT_SECONDS = 60
"""Seconds to wait for other processes."""


@dataclass(frozen=True)
class Advice:
    """The class of error, and the fixes, for a file that cannot be used.

    Attributes:
        folder: the fix where its folder cannot be created.
        damaged: the fix where it is not a database, or no longer one.
        closed: the fix where it cannot be opened or written.
        disk: the fix where its disk fails, or cannot lock files.
    """

    error: type[PenchantError]
    folder: str
    damaged: str
    closed: str
    disk: str

    def fix(self, kind: int) -> str | None:
        """The fix for a primary error code of SQLite; None where a user can do nothing."""
        return {
            sqlite3.SQLITE_NOTADB: self.damaged,
            sqlite3.SQLITE_CORRUPT: self.damaged,
            sqlite3.SQLITE_CANTOPEN: self.closed,
            sqlite3.SQLITE_READONLY: self.closed,
            sqlite3.SQLITE_BUSY: "wait for the process that holds it, or end it",
            sqlite3.SQLITE_IOERR: self.disk,
            sqlite3.SQLITE_PROTOCOL: self.disk,
        }.get(kind)


USER_FILE_ADVICE = Advice(
    DataError,
    folder="name a file in another folder",
    damaged="name another file, or move this one away",
    closed="name another file, or allow this one to be written",
    disk="name a file on another disk",
)
"""Advice for a file that the user named."""
CACHE_ADVICE = Advice(
    ConfigError,
    folder="set PENCHANT_CACHE to a folder you can write to",
    damaged="move it away: a new one is made",
    closed="allow it to be written, or set PENCHANT_CACHE to a folder you can write to",
    disk="see that the disk has room, or set PENCHANT_CACHE to a folder on another one",
)
"""Advice for a cache, which the user did not name."""


def connect(path: Path, advice: Advice = USER_FILE_ADVICE, *, several_threads: bool = False) -> sqlite3.Connection:
    """A connection that commits each statement; the file and its folder are made if missing.

    Raises:
        DataError: the file or its folder cannot be created; a ConfigError for a cache.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"its folder cannot be made: {error.strerror}"
        raise advice.error(problem, where=str(path), fix=advice.folder) from error
    with database_errors(path, advice):
        return sqlite3.connect(
            path, timeout=TIMEOUT_SECONDS, isolation_level=None, check_same_thread=not several_threads
        )


def open_cache(path: Path, table: str) -> sqlite3.Connection:
    """A connection to one of Penchant's caches, for any number of processes and threads.

    Args:
        table: the SQL statement that creates its table if it is missing.

    Raises:
        ConfigError: it cannot be made or used.
        DiskFullError: there was no room.
    """
    # SQLite itself serializes the threads.
    connection = connect(path, CACHE_ADVICE, several_threads=True)
    try:
        with database_errors(path, CACHE_ADVICE):
            enable_write_ahead_log(connection)
            connection.execute(table)
    except BaseException:
        connection.close()
        raise
    return connection


def enable_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch a database to a write-ahead log, so that readers work beside a writer.

    SQLite refuses some of several processes that switch at once, without waiting: the switch is tried again.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if _kind(error.sqlite_errorcode) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


@contextmanager
def database_errors(path: Path, advice: Advice = USER_FILE_ADVICE) -> Iterator[None]:
    """Turn SQLite's failures into errors with a fix; programming errors pass through.

    Raises:
        DataError: the file is no database, or cannot be used; a ConfigError for a cache.
        DiskFullError: there was no room.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Errors that Python's module raises itself have no code.
        code = getattr(error, "sqlite_errorcode", 0)
        if code in DISK_FULL_CODES:
            raise DiskFullError(
                "the disk is full; what was stored before is untouched",
                where=str(path),
                fix="free some space, then give the same command again: it resumes where it stopped",
            ) from error
        fix = advice.fix(_kind(code))
        if fix is None:
            raise
        raise advice.error(f"it cannot be used: {error}", where=str(path), fix=fix) from error


def _kind(code: int) -> int:
    """The primary error code: the lowest byte of an extended one."""
    return code & 0xFF


class Database:
    """A file with tables of ours; what a transaction wrote is on the disk when it ends.

    Args:
        path: the file; made if missing, with its folder.
        application: in the file's header: says whose tables these are, and of which version; not 0.
        schema: the statements that make the tables, a semicolon between them.

    Raises:
        DataError: the file is no database, is another program's, or cannot be opened.
        DiskFullError: here and in `writing`.
    """

    def __init__(self, path: Path, application: int, schema: str) -> None:
        self._path = path
        self._connection = connect(path)
        try:
            self._prepare(application, schema)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All of what is done meanwhile or nothing; no other process writes between."""
        with database_errors(self._path), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of one query."""
        with database_errors(self._path):
            return self._connection.execute(query, values).fetchall()

    def close(self) -> None:
        self._connection.close()

    def _prepare(self, application: int, schema: str) -> None:
        with self.writing() as connection:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (found,) = connection.execute("PRAGMA application_id").fetchone()
            if tables and found != application:
                raise DataError("this is another program's database", where=str(self._path), fix="name a new file")
            for statement in () if tables else (*schema.split(";"), f"PRAGMA application_id = {application}"):
                connection.execute(statement)
        # Last: it changes the file, which by now is known to be ours.
        with database_errors(self._path):
            enable_write_ahead_log(self._connection)
