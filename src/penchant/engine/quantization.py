"""Eight-bit weights for processors without an accelerator."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from penchant.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantize_int8(model: PreTrainedModel) -> PreTrainedModel:
    """The model with int8 weights in its linear layers, whose inputs are quantised dynamically; changed in place.

    Raises:
        ConfigError: this PyTorch no longer has dynamic quantisation.
    """
    import torch

    try:
        quantise = torch.ao.quantization.quantize_dynamic
    except AttributeError as error:
        raise ConfigError(
            f"torch {torch.__version__} has no dynamic quantisation", fix="use a version of torch that has it"
        ) from error
    with warnings.catch_warnings():
        # PyTorch means to move it to a library of its own, whose layers are slow on a CPU unless compiled.
        warnings.simplefilter("ignore")
        quantised: PreTrainedModel = quantise(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
    return quantised
