"""Answers that took long to get, kept on disk: rewards and verdicts, by who gave them and to what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from penchant.engine.database import CACHE_ADVICE, database_errors, open_cache


class KeptAnswers:
    """One SQLite file, safe against several processes; what was kept before an interruption is there after it.

    Args:
        by: who answers; another name, other answers.
        folder: holds the file; made if missing.

    Raises:
        ConfigError: the file cannot be used; here and in every call, as is
        DiskFullError: there was no room.
    """

    def __init__(self, by: str, folder: Path) -> None:
        self._by, self._file = by, folder / "answers.sqlite"
        table = "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID"
        self._connection = open_cache(self._file, table)

    def get(self, asked: Any) -> Any:
        """The answer, or None where it is not kept."""
        query = "SELECT value FROM answers WHERE key = ?"
        with database_errors(self._file, CACHE_ADVICE):
            row = self._connection.execute(query, (self._key(asked),)).fetchone()
        return None if row is None else json.loads(row[0])

    def keep(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Keep (asked, answer) pairs, all JSON values."""
        rows = [(self._key(asked), json.dumps(answer)) for asked, answer in pairs]
        with database_errors(self._file, CACHE_ADVICE):
            self._connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def close(self) -> None:
        self._connection.close()

    def _key(self, asked: Any) -> bytes:
        text = json.dumps([self._by, asked], ensure_ascii=False, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=20).digest()
