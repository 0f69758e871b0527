"""Caches under faults: opened by many at once, in a folder that cannot be written, damaged, on a full disk."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from penchant.cli.main import run
from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import TreeBatch, pack
from penchant.errors import ConfigError, DiskFullError
from penchant.storage import sqlite as database
from penchant.storage.caches import AnswerCache, LogProbCache, cache_folder


def row(number: int) -> TreeBatch:
    return pack([TokenizedGroup(np.array([number]), (np.array([1]),), PreferenceGroup("x", ("y",)))])


class Cache(NamedTuple):
    """One of the two caches: its file, and functions that open it, store a value of a length, and read it."""

    file: str
    open: Callable[[Path], LogProbCache | AnswerCache]
    keep: Callable[..., None]
    get: Callable[..., object]


LOG_PROBS = Cache(
    "log_probs.sqlite",
    lambda folder: LogProbCache("model", "how", folder),
    lambda cache, number, length=1: cache.keep(row(number), [-1.0] * length),
    lambda cache, number: cache.look_up([row(number)]).get(0),
)
ANSWERS = Cache(
    "answers.sqlite",
    lambda folder: AnswerCache("judge", folder),
    lambda cache, number, length=1: cache.keep([(number, [-1.0] * length)]),
    lambda cache, number: cache.get(number),
)
both = pytest.mark.parametrize("cache", [LOG_PROBS, ANSWERS], ids=["log-probs", "answers"])

AT_ONCE = """
import os, sys, time
from pathlib import Path
from tests.storage.test_sqlite import ANSWERS, LOG_PROBS
started = time.time() + 0.2
children = []
for number in range(12):
    if (child := os.fork()) == 0:
        try:
            for folder in map(str, range(10)):
                time.sleep(max(0.0, started + 0.1 * int(folder) - time.time()))
                for cache in (LOG_PROBS, ANSWERS):
                    opened = cache.open(Path(sys.argv[1]) / folder)
                    cache.keep(opened, number)
                    opened.close()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitpid(child, 0)[1] for child in children) != 0)
"""

LIMITED = """
import resource, signal, sys
from pathlib import Path
from tests.storage.test_sqlite import LOG_PROBS
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
opened = LOG_PROBS.open(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    for number in range(1000):
        LOG_PROBS.keep(opened, number, 100)
except Exception as error:
    print(number, type(error).__name__, error, file=sys.stderr)
"""


@pytest.fixture
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program started now can import this module."""
    monkeypatch.chdir(Path(__file__).resolve().parents[2])


@pytest.mark.slow
@pytest.mark.usefixtures("at_the_root")
def test_many_processes_open_new_caches_at_once(start_penchant, tmp_path):
    errors = tmp_path / "errors"
    assert start_penchant("-c", AT_ONCE, tmp_path, stderr=errors).wait(60) == 0, errors.read_text()
    for folder in range(10):
        for cache in (LOG_PROBS, ANSWERS):
            store = cache.open(tmp_path / str(folder))
            assert [cache.get(store, number) for number in range(13)] == [[-1.0]] * 12 + [None]


@both
def test_many_threads_share_a_cache(cache, tmp_path):
    store = cache.open(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: cache.keep(store, number), range(400))) == [None] * 400
        assert list(pool.map(lambda number: cache.get(store, number), range(401))) == [[-1.0]] * 400 + [None]
    store.close()


class TestLockedByAnotherProcess:
    """SQLite refuses the switch to a write-ahead log without a wait while another process is about to write."""

    @pytest.fixture
    def writer(self, cache, tmp_path):
        """A connection to the empty cache file of a process that is about to create the table."""
        other = sqlite3.connect(tmp_path / cache.file, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            sqlite3.connect(tmp_path / cache.file, timeout=60).execute("PRAGMA journal_mode=WAL")
        yield other
        other.close()

    @both
    def test_it_waits(self, cache, writer, tmp_path):
        timer = threading.Timer(0.3, lambda: writer.execute("COMMIT"))
        start = time.monotonic()
        timer.start()
        store = cache.open(tmp_path)
        assert time.monotonic() - start >= 0.25
        timer.join()
        cache.keep(store, 3)
        assert cache.get(store, 3) == [-1.0]
        store.close()

    @both
    def test_it_gives_up_after_the_time_out(self, cache, writer, tmp_path, monkeypatch):
        monkeypatch.setattr(database, "TIMEOUT_SECONDS", 0.1)
        with pytest.raises(ConfigError, match="it cannot be used: database is locked") as error:
            cache.open(tmp_path)
        assert error.value.where == str(tmp_path / cache.file)
        assert error.value.fix == "wait for the process that holds it, or end it"


class TestCannotBeWritten:
    @both
    def test_a_folder_that_cannot_be_made(self, cache, tmp_path):
        (tmp_path / "file").write_text("thesis")
        with pytest.raises(ConfigError, match="its folder cannot be made: Not a directory") as error:
            cache.open(tmp_path / "file" / "cache")
        assert error.value.where == str(tmp_path / "file" / "cache" / cache.file)
        assert error.value.fix == "set PENCHANT_CACHE to a folder you can write to"

    @both
    def test_a_home_that_is_not_ours(self, cache, tmp_path, monkeypatch):
        def refuse(*args: object, **kwargs: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(ConfigError, match="its folder cannot be made: Permission denied"):
            cache.open(tmp_path / "cache")

    @both
    def test_a_file_that_cannot_be_opened(self, cache, tmp_path):
        (tmp_path / cache.file).mkdir()
        with pytest.raises(ConfigError, match="unable to open database file") as error:
            cache.open(tmp_path)
        assert "set PENCHANT_CACHE to a folder you can write to" in error.value.fix

    @both
    def test_a_file_that_can_only_be_read(self, cache, tmp_path):
        store = cache.open(tmp_path)
        cache.keep(store, 1)
        store._database._connection.execute("PRAGMA query_only = 1")
        with pytest.raises(ConfigError, match="attempt to write a readonly database") as error:
            cache.keep(store, 2)
        assert "allow it to be written" in error.value.fix
        assert cache.get(store, 1) == [-1.0]

    def test_no_home_at_all(self, monkeypatch):
        monkeypatch.delenv("PENCHANT_CACHE")
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
        with pytest.raises(ConfigError, match="no home folder to keep a cache in") as error:
            cache_folder()
        assert "PENCHANT_CACHE" in error.value.fix

    def test_the_command_line_says_so(self, write_config, tmp_path, monkeypatch, capsys):
        (tmp_path / "file").write_text("thesis")
        monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "file" / "cache"))
        assert run(["train", str(write_config())]) == 2
        message = capsys.readouterr().err.rpartition("error: ")[2]
        assert message == (
            f"{tmp_path}/file/cache/log_probs.sqlite: its folder cannot be made: Not a directory\n"
            "  what to do: set PENCHANT_CACHE to a folder you can write to\n"
        )


class TestDamaged:
    @both
    def test_no_database(self, cache, tmp_path):
        content = b"no database, but long enough to be read as one " * 40
        (tmp_path / cache.file).write_bytes(content)
        with pytest.raises(ConfigError, match="it cannot be used: file is not a database") as error:
            cache.open(tmp_path)
        assert error.value.where == str(tmp_path / cache.file)
        assert error.value.fix == "move it away: a new one is made"
        assert (tmp_path / cache.file).read_bytes() == content

    @both
    def test_overwritten_in_the_middle(self, cache, tmp_path):
        store = cache.open(tmp_path)
        for number in range(300):
            cache.keep(store, number, 20)
        store.close()
        content = bytearray((tmp_path / cache.file).read_bytes())
        assert len(content) > 5 * 4096
        content[2 * 4096 :] = b"\xff" * (len(content) - 2 * 4096)
        (tmp_path / cache.file).write_bytes(content)
        store = cache.open(tmp_path)
        with pytest.raises(ConfigError, match="database disk image is malformed") as error:
            _ = [cache.get(store, number) for number in range(300)]
        assert error.value.fix == "move it away: a new one is made"


class TestFullDisk:
    @both
    def test_a_full_disk_loses_no_row(self, cache, tmp_path):
        store = cache.open(tmp_path)
        cache.keep(store, 0, 100)
        store._database._connection.execute("PRAGMA max_page_count = 20")
        numbers: list[int] = []
        with pytest.raises(DiskFullError, match="the disk is full; what was stored before is untouched") as error:
            _ = [cache.keep(store, number, 100) or numbers.append(number) for number in range(1, 1000)]
        assert 1 < len(numbers) < 200
        assert error.value.where == str(tmp_path / cache.file)
        assert cache.get(store, numbers[-1] + 1) is None
        assert cache.get(store, numbers[-1]) == cache.get(store, 0) == [-1.0] * 100

    @pytest.mark.usefixtures("at_the_root")
    def test_a_file_beyond_the_size_limit(self, start_penchant, tmp_path):
        """SQLite reports a size limit or a quota as an I/O error."""
        output = tmp_path / "output"
        assert start_penchant("-c", LIMITED, tmp_path, stderr=output).wait(60) == 0
        row_count, _, error = output.read_text().partition(" ")
        assert error == (
            f"ConfigError {tmp_path / LOG_PROBS.file}: it cannot be used: disk I/O error\n"
            "  what to do: see that the disk has room, or set PENCHANT_CACHE to a folder on another one\n"
        )
        assert int(row_count) > 3
        store = LOG_PROBS.open(tmp_path)
        assert [LOG_PROBS.get(store, number) for number in range(int(row_count))] == [[-1.0] * 100] * int(row_count)
