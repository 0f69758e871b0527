"""Log-probs of frozen models, and rewards and verdicts, on disk under a hash of all that determines them.

The key covers the weights, the model's configuration, the way they are computed (the engine's own source too) and the
exact packed row; change any and it is another key, so nothing stale can be read. The tokenizer is covered by the token
ids it made. One SQLite file, safe against several processes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from penchant.data.trees import TreeBatch
from penchant.errors import ConfigError
from penchant.storage.sqlite import CACHE_ADVICE, database_errors, open_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


_LOOK_UP_AT_ONCE = 500
_CHECKSUM = 8
"""Bytes of the checksum in front of every value."""

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


def model_fingerprint(model: PreTrainedModel) -> str:
    """A hash of the model's weights (names, shapes, dtypes, bytes) and of the configuration that gives them meaning."""
    digest = hashlib.blake2b(digest_size=16)
    volatile = {"_name_or_path", "transformers_version", "_attn_implementation", "use_cache", "dtype"}
    config = {key: value for key, value in model.config.to_dict().items() if key not in volatile}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides which ids a text becomes: the tokenizer as it is saved, its chat template with it."""
    digest = hashlib.blake2b(digest_size=16)
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size} ".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _engine_code() -> str:
    """A hash of the engine's source, since faster code rounds otherwise; of all files, so that none is forgotten."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


class ReferenceCache:
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

        versions = f"{torch.__version__} {transformers.__version__} {_engine_code()}"
        self._prefix = f"{model} {computed} {versions}".encode()
        self._file = folder / "log_probs.sqlite"
        table = "CREATE TABLE IF NOT EXISTS log_probs (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
        self._connection = open_cache(self._file, table)
        # Rows lost in a power cut are computed again.
        self._connection.execute("PRAGMA synchronous=NORMAL")

    def look_up(self, batches: Iterable[TreeBatch]) -> dict[int, list[float]]:
        """Log-probs of the batches that are cached, by batch number: one per candidate, in the row's order, nats."""
        keys = [self._key(batch) for batch in batches]
        stored_values: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _LOOK_UP_AT_ONCE):
            part = keys[start : start + _LOOK_UP_AT_ONCE]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, value FROM log_probs WHERE key IN ({marks})"
            with database_errors(self._file, CACHE_ADVICE):
                stored_values.update(self._connection.execute(query, part))
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
        with database_errors(self._file, CACHE_ADVICE):
            self._connection.execute("INSERT OR REPLACE INTO log_probs VALUES (?, ?)", row)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _key(self, batch: TreeBatch) -> bytes:
        digest = hashlib.blake2b(self._prefix, digest_size=20)
        digest.update(repr(batch.branches).encode())
        digest.update(batch.input_ids.numpy().tobytes())
        if batch.loss_mask is not None:
            digest.update(b"learnt " + batch.loss_mask.numpy().tobytes())
        return digest.digest()


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(key + value, digest_size=_CHECKSUM).digest()
