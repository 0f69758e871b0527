"""Which medium a configuration is of."""

from __future__ import annotations

from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.medium import Medium
from penchant.recipes.self_improve.picture_medium import PictureMedium
from penchant.recipes.self_improve.text_medium import TextMedium


def medium_of(config: SelfImproveConfig) -> Medium:
    """Pictures where the configuration has settings for them, else texts."""
    return TextMedium(config) if config.pictures is None else PictureMedium(config, config.pictures)
