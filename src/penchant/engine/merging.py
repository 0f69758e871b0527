"""An adapter folder and its base model, written as one ordinary model folder."""

from __future__ import annotations

from pathlib import Path

from penchant.engine.folders import whole_folder
from penchant.engine.heads import copy_heads
from penchant.engine.loading import adapter_base, load_model, load_tokenizer
from penchant.engine.model_kind import model_kind
from penchant.engine.pad_token import set_pad_token
from penchant.engine.reward_model import load_reward_model
from penchant.engine.saved_dtype import SaveDtype, saved_dtype
from penchant.engine.saving import save_model
from penchant.errors import ModelError


def merge_adapter(source: str, output: Path, save_dtype: SaveDtype = "auto") -> None:
    """Write an adapter folder's base model with the adapter merged in, in float32, as an ordinary model folder.

    A reward model's adapter becomes a sequence classifier with its head; preference heads are copied beside the model.

    Args:
        save_dtype: dtype of the weights on disk; ``auto`` is the base's.

    Raises:
        ModelError: `source` is no adapter folder, or `output` exists already.
    """
    if adapter_base(source) is None:
        raise ModelError("this is no adapter folder: it has no adapter_config.json", where=source)
    if output.exists():
        raise ModelError("it is there already", where=str(output), fix="name a new folder")
    tokenizer = load_tokenizer(source)
    if model_kind(source).is_reward_model:
        model = load_reward_model(source)
        set_pad_token(model, tokenizer, grow=True)
    else:
        model = load_model(source)
    disk_dtype = saved_dtype(model, source, save_dtype).safe_for(dict(model.named_parameters()))
    disk_dtype.round_weights(model)
    with whole_folder(output) as temporary:
        save_model(model, temporary, dtype=disk_dtype.dtype)
        tokenizer.save_pretrained(temporary)
        copy_heads(source, temporary)
