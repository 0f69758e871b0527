"""Reward models: sequence-classification models in Hugging Face format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from penchant.engine.adapter_loading import merge_adapter_into
from penchant.engine.checkpoint import keep_language_part
from penchant.engine.loading import adapter_base, check_folder, explained, load_config, refuse_missing, remove_dropout
from penchant.engine.multimodal import classification_class, refuse_tower_adapters, text_config
from penchant.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEADS = ("lm_head", "embed_out")
"""Names of language models' output heads."""


def load_reward_model(source: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A sequence-classification model, its dropout off; an adapter folder is merged into its base.

    Args:
        source: a folder in Hugging Face or PEFT format, or a hub id.

    Raises:
        ModelError: nothing there, damaged, or weights missing: the head's too, so a language model is refused, and
            its adapter.
    """
    check_folder(source)
    base = adapter_base(source)
    adapter = {} if base is None else json.loads((Path(source) / "adapter_config.json").read_text(encoding="utf-8"))
    if adapter.get("task_type") == "CAUSAL_LM":
        raise ModelError(
            "this is a language model's adapter, which has no head to say a reward",
            where=source,
            fix=f"name a reward model; or train one from it: model={source} objective.name=bradley_terry",
        )
    model, report = _classifier(base or source, dtype, **({"num_labels": 1} if base else {}))
    if base is not None:
        refuse_tower_adapters(model, source)
        model = merge_adapter_into(model, source)  # The adapter brings the head.
    else:
        refuse_missing(source, report)
    config = text_config(model.config)
    if config.pad_token_id is None:
        config.pad_token_id = config.eos_token_id if isinstance(config.eos_token_id, int) else 0
    remove_dropout(model)
    return model


def start_reward_model(source: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A reward model to train: a language model's backbone with a fresh head of one output, or a reward model as it is.

    A language model's adapter folder is merged into its base.

    The head's numbers come from torch's generator: seed it first.

    Raises:
        ModelError: as `load_reward_model`; or a classifier of several outputs.
    """
    from transformers import AutoConfig

    check_folder(source)
    base = adapter_base(source)
    with explained(source):
        config = AutoConfig.from_pretrained(base or source)
    if is_reward_model(source) or any("SequenceClassification" in name for name in config.architectures or ()):
        return load_reward_model(source, dtype=dtype)
    model, report = _classifier(base or source, dtype, num_labels=1)
    report["missing_keys"] = {name for name in report["missing_keys"] if not name.startswith("score.")}
    refuse_missing(source, report)
    if base is not None:
        model = _with_backbone_of(source, model)
    torch.nn.init.normal_(model.score.weight, std=(model.score.in_features + 1) ** -0.5)
    text = text_config(model.config)
    if text.pad_token_id is None:
        text.pad_token_id = text.eos_token_id if isinstance(text.eos_token_id, int) else 0
    remove_dropout(model)
    return model


def _classifier(source: str, dtype: torch.dtype, **labels: int) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and which weights its files lack."""
    with explained(source):
        model, report = classification_class(load_config(source), source).from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **labels
        )
    keep_language_part(model, source, replaced=rf"(^|\.)({'|'.join(_HEADS)})\.")
    return model, report


def _with_backbone_of(source: str, model: PreTrainedModel) -> PreTrainedModel:
    """Merge a language model's adapter folder into a reward model's backbone."""
    # A language model's task would be asked to generate, and its output head has no counterpart here.
    return merge_adapter_into(model, source, task="FEATURE_EXTRACTION", absent=_HEADS)


def is_reward_model(source: str) -> bool:
    """Whether a local folder holds a sequence-classification model."""
    for name in ("config.json", "adapter_config.json"):
        file = Path(source) / name
        if file.is_file():
            values = json.loads(file.read_text(encoding="utf-8"))
            if values.get("task_type") == "SEQ_CLS" or any(
                "SequenceClassification" in kind for kind in values.get("architectures") or ()
            ):
                return True
    return False
