"""Log-probs of frozen models, and rewards and verdicts, on disk under a hash of all that determines them.

The key covers the weights, the model's configuration, the way they are computed (the engine's own source too) and the
exact packed row; change any and it is another key, so nothing stale can be read. The tokenizer is covered by the token
ids it made. One SQLite file, safe against several processes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penchant.data.trees import TreeBatch
from penchant.errors import ConfigError
from penchant.storage.fingerprints import engine_fingerprint, hash_parts
from penchant.storage.sqlite import CACHE_ADVICE, Database


class AnswerCache:
    """Answers of one judge or reward, in a SQLite file for several processes and threads; an interruption loses none.

    Args:
        source: name of who answers; under another name the answers are others.
        folder: holds the file; created if missing.

    Raises:
        ConfigError: the file cannot be used; raised by every method.
        DiskFullError: there was no room; raised by every method.
    """

    def __init__(self, source: str, folder: Path) -> None:
        self._source = source
        self._database = Database(
            folder / "answers.sqlite",
            "CREATE TABLE answers (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID",
            advice=CACHE_ADVICE,
        )

    def get(self, question: Any) -> Any:
        """The answer to a question, a JSON value; None where none is stored."""
        rows = self._database.read("SELECT value FROM answers WHERE key = ?", (self._key(question),))
        return json.loads(rows[0][0]) if rows else None

    def keep(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Store (question, answer) pairs, all JSON values."""
        rows = [(self._key(question), json.dumps(answer)) for question, answer in pairs]
        self._database.write("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _key(self, question: Any) -> bytes:
        text = json.dumps([self._source, question], ensure_ascii=False, sort_keys=True)
        return hash_parts([text.encode()], _KEY)


_LOOK_UP_AT_ONCE = 500
_KEY, _CHECKSUM = 20, 8
"""Bytes of every key, and of the checksum in front of every value."""

_logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder of all caches: ``$PENCHANT_CACHE``, else ``~/.cache/penchant``.

    Raises:
        ConfigError: there is neither, as for an unknown user of a container.
    """
    try:
        return Path(os.environ.get("PENCHANT_CACHE") or Path.home() / ".cache" / "penchant")
    except RuntimeError as error:
        raise ConfigError(
            "there is no home folder to keep a cache in", fix="set PENCHANT_CACHE to a folder you can write to"
        ) from error


class LogProbCache:
    """One model's log-probs, by packed row.

    Args:
        model: the model's fingerprint.
        computed: how it is run, as in ``TreeScorer float32 cpu``.
        folder: holds the file; made if missing.

    Raises:
        ConfigError: the file cannot be used; raised by every method.
        DiskFullError: there was no room; raised by every method.
    """

    def __init__(self, model: str, computed: str, folder: Path) -> None:
        import transformers

        versions = f"{torch.__version__} {transformers.__version__} {engine_fingerprint()}"
        self._prefix = f"{model} {computed} {versions}".encode()
        self._file = folder / "log_probs.sqlite"
        self._database = Database(
            self._file,
            "CREATE TABLE log_probs (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID",
            advice=CACHE_ADVICE,
            synchronous="NORMAL",  # rows lost in a power cut are computed again
        )

    def look_up(self, batches: Iterable[TreeBatch]) -> dict[int, list[float]]:
        """Log-probs of the batches that are cached, by batch number: one per candidate, in the row's order, nats."""
        keys = [self._key(batch) for batch in batches]
        stored_values: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _LOOK_UP_AT_ONCE):
            part = keys[start : start + _LOOK_UP_AT_ONCE]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, value FROM log_probs WHERE key IN ({marks})"
            stored_values.update(self._database.read(query, part))
        log_probs: dict[int, list[float]] = {}
        damaged = 0
        for index, key in enumerate(keys):
            if key not in stored_values:
                continue
            checksum, value = stored_values[key][:_CHECKSUM], stored_values[key][_CHECKSUM:]
            if checksum == _checksum(key, value):
                log_probs[index] = np.frombuffer(value, np.float64).tolist()
            else:
                damaged += 1
        if damaged:
            _logger.warning(f"{self._file}: {damaged} cached log-probs are damaged; they are computed again")
        return log_probs

    def keep(self, batch: TreeBatch, log_probs: Sequence[float]) -> None:
        """Store a batch's log-probs, one per candidate, nats."""
        key, value = self._key(batch), np.asarray(log_probs, np.float64).tobytes()
        row = key, _checksum(key, value) + value
        self._database.write("INSERT OR REPLACE INTO log_probs VALUES (?, ?)", [row])

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _key(self, batch: TreeBatch) -> bytes:
        mask = b"" if batch.loss_mask is None else b"learnt " + batch.loss_mask.numpy().tobytes()
        layout = b"" if batch.prompts_first is None else b"prompts first "
        shape = repr(batch.branches).encode()
        return hash_parts((self._prefix, layout, shape, batch.input_ids.numpy().tobytes(), mask), _KEY)


def _checksum(key: bytes, value: bytes) -> bytes:
    return hash_parts([key, value], _CHECKSUM)
