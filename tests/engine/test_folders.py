"""A folder that is written whole or not at all."""

from __future__ import annotations

import errno

import pytest
from safetensors import SafetensorError

from penchant.engine.folders import disk_errors, whole_folder
from penchant.errors import DiskFullError


def half_of_it(folder):
    with whole_folder(folder) as aside:
        (aside / "half").write_text("h")
        raise KeyError


def test_it_appears_once_all_is_there_without_what_an_earlier_half_had(tmp_path):
    folder = tmp_path / "deep" / "model"
    with pytest.raises(KeyError):
        half_of_it(folder)
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
def test_a_full_disk_however_deep(tmp_path, error):
    def write():
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("could not save") from inner

    with pytest.raises(DiskFullError, match="the disk is full") as error_info, disk_errors(tmp_path, "penchant again"):
        write()
    assert error_info.value.fix == "free some space, then go on with: penchant again"


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), SafetensorError("os error 28")])
def test_another_error_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error)) as error_info, disk_errors(tmp_path, "penchant again"):
        raise error
    assert error_info.value is error
