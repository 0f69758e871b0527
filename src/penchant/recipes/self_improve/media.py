"""Chooses the learner backend of a configuration."""

from __future__ import annotations

from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.medium import LearnerBackend
from penchant.recipes.self_improve.picture_medium import PictureBackend
from penchant.recipes.self_improve.text_medium import TextBackend


def build_backend(config: SelfImproveConfig) -> LearnerBackend:
    """The picture backend if the configuration has settings for pictures, else the text backend."""
    return TextBackend(config) if config.pictures is None else PictureBackend(config, config.pictures)
