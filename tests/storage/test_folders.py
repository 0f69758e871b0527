"""A folder that is written completely or not at all."""

from __future__ import annotations

import errno

import pytest
from safetensors import SafetensorError

from penchant.errors import DiskFullError
from penchant.storage.files import disk_errors, whole_folder


def write_half(folder):
    with whole_folder(folder) as aside:
        (aside / "half").write_text("h")
        raise KeyError


def test_a_folder_appears_once_complete_without_files_of_an_earlier_attempt(tmp_path):
    folder = tmp_path / "deep" / "model"
    with pytest.raises(KeyError):
        write_half(folder)
    assert not folder.exists()
    with whole_folder(folder) as aside:
        (aside / "weights").write_text("w")
        assert not folder.exists()
    assert [file.name for file in folder.iterdir()] == ["weights"]
    assert [file.name for file in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_recognized_in_wrapped_errors(tmp_path, error):
    def write():
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("could not save") from inner

    with pytest.raises(DiskFullError, match="the disk is full") as error_info, disk_errors(tmp_path, "penchant again"):
        write()
    assert error_info.value.fix == "free some space, then resume with: penchant again"


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), SafetensorError("os error 28")])
def test_other_errors_pass_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as error_info, disk_errors(tmp_path, "penchant again"):
        raise error
    assert error_info.value is error
