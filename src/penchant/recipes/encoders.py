"""The configuration of the encoder that a recipe compares two texts with."""

from __future__ import annotations

from pydantic import Field

from penchant.config_section import Section
from penchant.evaluation.similarity import BertScore


class EncoderConfig(Section):
    """An encoder whose hidden states measure how similar an answer is to its reference."""

    model: str = Field(description="folder or hub id of an encoder, or of any language model")
    layers: int | None = Field(None, ge=1, description="layer whose hidden states are compared; null: the last")

    def open(self) -> BertScore:
        """The loaded `BertScore`, which raises the same errors as its constructor."""
        return BertScore(self.model, self.layers)
