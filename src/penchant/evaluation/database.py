"""SQLite files that several processes write to: whole transactions, and failures in the user's words."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penchant.errors import DataError, DiskFullError

FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
"""A database that was closed finds no room for the memory that its readers share: it does not say that this is why."""
UNUSABLE = {
    sqlite3.SQLITE_NOTADB: "name another file, or move this one away",
    sqlite3.SQLITE_CORRUPT: "name another file, or move this one away",
    sqlite3.SQLITE_CANTOPEN: "name another file, or allow this one to be written",
    sqlite3.SQLITE_READONLY: "name another file, or allow this one to be written",
    sqlite3.SQLITE_BUSY: "wait for the process that holds it, or end it",
    sqlite3.SQLITE_IOERR: "name a file on another disk",
}
"""SQLite's kinds of failure that a user can do something about, and what."""
PATIENCE = 60
"""Seconds to wait for other processes."""


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
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fix = "name a file in another folder"
            raise DataError(f"its folder cannot be made: {error.strerror}", where=str(path), fix=fix) from error
        with explained(path):
            self._connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        try:
            self._prepare(application, schema)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All of what is done meanwhile or nothing; no other process writes between."""
        with explained(self._path), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of one query."""
        with explained(self._path):
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
        self._write_ahead(time.monotonic() + PATIENCE)

    def _write_ahead(self, deadline: float) -> None:
        """Readers beside a writer. Of processes that switch to it together, SQLite refuses some without a wait."""
        with explained(self._path):
            while True:
                try:
                    self._connection.execute("PRAGMA journal_mode=WAL")
                    return
                except sqlite3.OperationalError as error:
                    if _kind(error.sqlite_errorcode) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
                time.sleep(0.01)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """SQLite's failures in the user's words; our own mistakes with it stay what they are.

    Raises:
        DataError: the file is no database, or cannot be used.
        DiskFullError: there was no room.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Python's own complaints have no code.
        code = getattr(error, "sqlite_errorcode", 0)
        if code in FULL:
            raise DiskFullError(
                "the disk is full; what was stored before is untouched",
                where=str(path),
                fix="free some space, then give the same command again: it goes on where it stopped",
            ) from error
        if _kind(code) not in UNUSABLE:
            raise
        raise DataError(f"it cannot be used: {error}", where=str(path), fix=UNUSABLE[_kind(code)]) from error


def _kind(code: int) -> int:
    """A failure's kind without its particulars, which are the higher bytes."""
    return code & 0xFF
