"""A SQLite file of ours that several processes write to, in whole transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penchant.engine.database import connect, database_errors, enable_write_ahead_log
from penchant.errors import DataError


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
