"""Reward models: sequence-classification models in Hugging Face format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from penchant.errors import ModelError
from penchant.models.adapter_loading import merge_adapter_into
from penchant.models.loading import (
    adapter_base,
    check_folder,
    load_config,
    loading_errors,
    refuse_missing,
    remove_dropout,
)
from penchant.models.model_kind import ModelKind, model_kind
from penchant.models.multimodal import classification_class, refuse_tower_adapters
from penchant.models.source_checkpoint import keep_language_part
from penchant.models.special_tokens import PAD_TOKEN_CHECKED, forget_pad_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEADS = ("lm_head", "embed_out")
"""Names of language models' output heads."""


def load_reward_model(source: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A sequence-classification model, its dropout off; an adapter folder is merged into its base.

    Its reward is read where transformers reads it: at the last token that is not ``config.pad_token_id``. A run of an
    older Penchant has its end token there although its head was trained at the end: it loses its pad token.

    Args:
        source: a folder in Hugging Face or PEFT format, or a hub id.

    Raises:
        ModelError: the model is missing or damaged, or weights are missing; without a head's weights a language model
            is refused, and its adapter.
    """
    check_folder(source)
    kind, base = model_kind(source), adapter_base(source)
    if kind.is_adapter and not kind.is_reward_model:
        raise ModelError(
            "this is a language model's adapter, which has no head to say a reward",
            where=source,
            fix="name a reward model; or train one: "
            f"penchant train RUN.yaml model={source} objective.name=bradley_terry",
        )
    if base is not None:
        model = _load_merged(source, base, dtype)
        trained_at_end = _is_run(source) and not model_kind(base).is_reward_model
    else:
        model, report = _classifier(source, dtype)
        _refuse_language_model(source, kind, report)
        refuse_missing(source, report)
        trained_at_end = _is_run(source) and not getattr(model.config, PAD_TOKEN_CHECKED, False)
    if trained_at_end:
        forget_pad_token(model)
    remove_dropout(model)
    return model


def start_reward_model(source: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A reward model to train: a language model's backbone with a fresh head of one output, or a reward model as it is.

    A language model's adapter folder is merged into its base. A fresh head is read at a row's last token.

    The head's weights are drawn from torch's generator: seed it first.

    Raises:
        ModelError: as `load_reward_model`; or a classifier of several outputs.
    """
    check_folder(source)
    base = adapter_base(source)
    if model_kind(source).is_reward_model:
        model = load_reward_model(source, dtype=dtype)
        if model.config.num_labels != 1:
            raise ModelError(
                f"the classifier has {model.config.num_labels} outputs; a reward model to train has one",
                where=source,
                fix="name a reward model of one output, or a language model, which gets a fresh head",
            )
        return model
    model, report = _classifier(base or source, dtype, num_labels=1)
    report["missing_keys"] = {name for name in report["missing_keys"] if not name.startswith("score.")}
    refuse_missing(source, report)
    if base is not None:
        model = _merge_into_backbone(source, model)
    torch.nn.init.normal_(model.score.weight, std=(model.score.in_features + 1) ** -0.5)
    forget_pad_token(model)
    remove_dropout(model)
    return model


def _classifier(source: str, dtype: torch.dtype, **labels: int) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and transformers' report of the weights that its files lack."""
    with loading_errors(source):
        model, report = classification_class(load_config(source), source).from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **labels
        )
    keep_language_part(model, source, replaced_pattern=rf"(^|\.)({'|'.join(_HEADS)})\.")
    return model, report


def _load_merged(source: str, base: str, dtype: torch.dtype) -> PreTrainedModel:
    """A reward model's adapter in its base; the head is the adapter's, or the base's where the adapter has none."""
    head = _adapter_head(source)
    model, report = _classifier(base, dtype, **({} if head is None else {"num_labels": head[1]}))
    if head is not None:
        for kind in ("missing_keys", "mismatched_keys"):
            names = report.get(kind, ())
            report[kind] = {n for n in names if not (n if isinstance(n, str) else n[0]).startswith(head[0])}
    refuse_missing(base, report)
    refuse_tower_adapters(model, source)
    return merge_adapter_into(model, source)


def _refuse_language_model(source: str, kind: ModelKind, report: dict[str, Any]) -> None:
    missing_weights = sorted(name for name in report["missing_keys"] if name.startswith("score."))
    if missing_weights and not kind.is_reward_model:
        raise ModelError(
            f"this is a language model, a {kind.architecture}, which has no head to say a reward: "
            f"{len(missing_weights)} weights are not in the model's files; the first is {missing_weights[0]}",
            where=source,
            fix="name a reward model; or train one: "
            f"penchant train RUN.yaml model={source} objective.name=bradley_terry",
        )


def _adapter_head(source: str) -> tuple[str, int] | None:
    """The head an adapter's file holds whole: its module's name and its outputs; None where it holds none."""
    from safetensors import safe_open

    file = Path(source) / "adapter_model.safetensors"
    if not file.is_file():
        return ("score.", 1)  # Weights in torch's own format: PEFT reads them, and says what it lacks.
    with loading_errors(source), safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            module, _, suffix = name.removeprefix("base_model.model.").partition(".")
            if module in ("score", "classifier") and suffix.endswith("weight") and "lora_" not in suffix:
                return (f"{module}.", int(tensors.get_slice(name).get_shape()[0]))
    return None


def _merge_into_backbone(source: str, model: PreTrainedModel) -> PreTrainedModel:
    """Merge a language model's adapter folder into a reward model's backbone."""
    # A language model's task would be asked to generate, and its output head has no counterpart here.
    return merge_adapter_into(model, source, task="FEATURE_EXTRACTION", absent=_HEADS)


def _is_run(source: str) -> bool:
    """Whether a folder is a run's output, or its ``best``."""
    folder = Path(source)
    return any((candidate / "run.json").is_file() for candidate in (folder, folder.resolve().parent))
