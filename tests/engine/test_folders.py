"""A folder that is written whole or not at all."""

from __future__ import annotations

import pytest

from penchant.engine.folders import whole_folder


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
