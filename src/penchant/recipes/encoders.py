"""The model by which a recipe compares two texts."""

from __future__ import annotations

from pydantic import Field

from penchant.config_section import Section
from penchant.evaluation.similarity import BertScore


class EncoderConfig(Section):
    """A model whose hidden states say how alike an answer and the right one are."""

    model: str = Field(description="folder or hub id of an encoder, or of any language model")
    layers: int | None = Field(None, ge=1, description="the layer compared; null: the last")

    def open(self) -> BertScore:
        """Errors as `BertScore`'s."""
        return BertScore(self.model, self.layers)
