"""Writing beside a file: never through a link that somebody planted there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from penchant.data.groups import PreferenceGroup
from penchant.data.review import Review
from penchant.errors import ConfigError
from penchant.models.preference_head import PreferenceHead, save_head
from penchant.storage.files import new_folder, whole_folder, write_atomically


@pytest.fixture
def thesis(tmp_path) -> Path:
    """A file of the user's that nothing may change."""
    file = tmp_path / "thesis" / "thesis.tex"
    file.parent.mkdir()
    file.write_text("forty years")
    return file


def test_write_atomically(tmp_path, thesis):
    (tmp_path / ".writing-run.json").symlink_to(thesis)
    write_atomically(tmp_path / "run.json", "{}")
    assert thesis.read_text() == "forty years"
    assert (tmp_path / "run.json").read_text() == "{}"
    assert not (tmp_path / "run.json").is_symlink()
    (tmp_path / ".writing-run.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_atomically(tmp_path / "run.json", "[]")
    assert (tmp_path / "run.json").read_text() == "{}"


def test_a_link_to_a_folder(tmp_path, thesis):
    """Neither emptied nor written into."""
    (tmp_path / ".writing-model").symlink_to(thesis.parent)
    with whole_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
    assert [file.name for file in thesis.parent.iterdir()] == ["thesis.tex"]
    assert not (tmp_path / "model").is_symlink()
    (tmp_path / "aside").symlink_to(tmp_path / "nowhere")
    new_folder(tmp_path / "aside")
    assert (tmp_path / "aside").is_dir()
    assert not (tmp_path / "nowhere").exists()


def test_a_head_and_a_verdict(tmp_path, thesis):
    (tmp_path / ".writing-preference_head.safetensors").symlink_to(thesis)
    torch.manual_seed(0)
    save_head(tmp_path, PreferenceHead(4, "identity"))
    (tmp_path / ".verdicts.jsonl.tmp").symlink_to(thesis)
    group = PreferenceGroup("p", ("a", "b"), preferred=0)
    Review([group], tmp_path / "verdicts.jsonl").give(group, "accept")
    assert thesis.read_text() == "forty years"
    assert (tmp_path / "verdicts.jsonl").read_text().count("\n") == 1
