"""One process writes a folder at a time; the lock ends with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from penchant.errors import ConfigError
from penchant.storage import files as module
from penchant.storage.files import folder_lock

HOLD = """
import sys
from pathlib import Path
from penchant.storage.files import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path / "run" until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_the_first_is_named(holder, tmp_path):
    with (
        pytest.raises(ConfigError, match=f"another process.*process {holder.pid} on ") as error,
        folder_lock(tmp_path / "run"),
    ):
        pass
    assert error.value.where == str(tmp_path / "run")


def test_the_lock_of_a_killed_process_is_free(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()
    with folder_lock(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / ".lock").read_text()


def test_the_lock_of_an_ended_process_is_free_and_its_folders_are_gone(holder, tmp_path):
    holder.communicate("")
    assert holder.returncode == 0
    assert list(tmp_path.iterdir()) == []
    with folder_lock(tmp_path / "run" / "deep"):
        (tmp_path / "run" / "deep" / "result").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "deep", "result"]


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(ConfigError, match="cannot be written"), folder_lock(tmp_path / "run"):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_a_file_that_its_last_holder_removed_is_made_anew(tmp_path, monkeypatch):
    """Opened before the removal and locked after it, it would be a lock that nobody else sees."""
    lock = module._lock
    removals: list[bool] = []

    def late(handle: int) -> None:
        if not removals:
            (tmp_path / ".lock").unlink()
            removals.append(True)
        lock(handle)

    monkeypatch.setattr(module, "_lock", late)
    with folder_lock(tmp_path):
        assert removals
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on "), folder_lock(tmp_path):
            pass


def test_a_full_disk_leaves_no_lock(small_disk):
    filler = small_disk.folder / "filler"
    filler.write_bytes(bytes(64 * 1024))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"), folder_lock(small_disk.folder):
            pass
    assert not (small_disk.folder / ".lock").exists()
    filler.unlink()
    with folder_lock(small_disk.folder):
        pass
