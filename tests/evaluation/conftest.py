"""Fixtures of the tests of measurements."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from penchant.models.preference_head import PreferenceHead, save_head


@pytest.fixture
def headed(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model's folder with a preference head of large random weights."""
    folder = shutil.copytree(tiny_model, tmp_path / "headed")
    torch.manual_seed(0)
    head = PreferenceHead(32, "identity")
    with torch.no_grad():
        head.weight.weight.mul_(50)
    save_head(folder, head)
    return folder
