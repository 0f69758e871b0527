"""SQLite files that several processes write to, with SQLite's failures reported as Penchant errors."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

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


class Database:
    """A SQLite file with tables of ours, for several processes and threads; readers work beside a writer.

    Args:
        path: the file, created with its folder if missing.
        schema: the statements that create the tables, with semicolons between them.
        application: number in the file's header that identifies whose tables these are, and their version; 0: nobody's.
        advice: the errors' class and fixes.
        synchronous: ``NORMAL`` where rows may be lost in a power cut; ``FULL`` where they may not.

    Raises:
        DataError: the file is no database, is another program's, or cannot be used (a ConfigError for a cache); raised
            by every method.
        DiskFullError: there was no room; raised by every method that writes.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        application: int = 0,
        advice: Advice = USER_FILE_ADVICE,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
    ) -> None:
        self._path, self._application, self._advice, self._lock = path, application, advice, Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"its folder cannot be made: {error.strerror}"
            raise advice.error(problem, where=str(path), fix=advice.folder) from error
        with self._errors():
            # SQLite itself serializes the threads.
            self._connection = sqlite3.connect(
                path, timeout=TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            self._create_tables(schema)
            # Last: it changes the file, which by now is known to be ours.
            with self._errors():
                self._enable_write_ahead_log()
                self._connection.execute(f"PRAGMA synchronous = {synchronous}")
        except BaseException:
            self.close()
            raise

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The connection in a transaction: all of it is stored or nothing, and no other process writes meanwhile."""
        with self._lock, self._errors(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def write(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement with the values of every row, in one transaction."""
        with self.writing() as connection:
            connection.executemany(statement, rows)

    def read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of one query."""
        with self._errors():
            return self._connection.execute(query, values).fetchall()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _create_tables(self, schema: str) -> None:
        if self._has_tables():
            return
        with self.writing() as connection:
            # Another process may have created them meanwhile.
            if not self._has_tables():
                for statement in (*schema.split(";"), f"PRAGMA application_id = {self._application}"):
                    connection.execute(statement)

    def _has_tables(self) -> bool:
        """Whether the file has tables, which must be ours."""
        [(tables,)], [(application,)] = (
            self.read(query) for query in ("SELECT count(*) FROM sqlite_master", "PRAGMA application_id")
        )
        if tables and application != self._application:
            raise self._advice.error(
                "this is another program's database", where=str(self._path), fix=self._advice.damaged
            )
        return bool(tables)

    def _enable_write_ahead_log(self) -> None:
        """Switch to a write-ahead log, so that readers work beside a writer.

        SQLite refuses some of several processes that switch at once, without waiting: the switch is tried again.
        """
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if _kind(error.sqlite_errorcode) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's failures into errors with a fix; programming errors pass through."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            # Errors that Python's module raises itself have no code.
            code = getattr(error, "sqlite_errorcode", 0)
            if code in DISK_FULL_CODES:
                raise DiskFullError(
                    "the disk is full; what was stored before is untouched",
                    where=str(self._path),
                    fix="free some space, then give the same command again: it resumes where it stopped",
                ) from error
            fix = self._advice.fix(_kind(code))
            if fix is None:
                raise
            raise self._advice.error(f"it cannot be used: {error}", where=str(self._path), fix=fix) from error


def _kind(code: int) -> int:
    """The primary error code: the lowest byte of an extended one."""
    return code & 0xFF
