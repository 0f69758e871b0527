"""Penchant trains, measures and compares language models on human preferences."""

from __future__ import annotations

__version__ = "0.1.0"
