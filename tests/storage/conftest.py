"""The engine's model families serve the tests of the log-prob cache too."""

from __future__ import annotations

from ..engine.conftest import build, make_groups

__all__ = ["build", "make_groups"]
