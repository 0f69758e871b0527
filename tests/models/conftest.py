"""The engine's model families serve the tests of models too."""

from __future__ import annotations

from ..engine.conftest import all_float64, build, config_of, family, make_groups

__all__ = ["all_float64", "build", "config_of", "family", "make_groups"]
