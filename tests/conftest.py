"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets and a tiny real model, kept beside the checkout during development; users do not have them."""
    folder = Path(os.environ.get("PENCHANT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found: {folder.name}/ is absent beside the checkout")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's reference cache."""
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path_factory.mktemp("cache")))
