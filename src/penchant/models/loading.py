"""Models and tokenizers from a folder or hub id in Hugging Face format, or a GGUF file; every defect a clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from penchant.errors import ModelError, reason_of
from penchant.models.adapter_loading import merge_adapter_into
from penchant.models.gguf.reading import check_gguf, gguf_config, gguf_tokenizer, is_gguf
from penchant.models.model_kind import require_language_model
from penchant.models.multimodal import generation_class, refuse_tower_adapters, text_config
from penchant.models.source_checkpoint import keep_language_part
from penchant.models.special_tokens import read_generation_config, read_gguf_ends

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenizer_config.json")


def load_model(source: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model, its dropout off; an adapter folder is merged into its base.

    A multimodal checkpoint has its original class, with the language part alone; `save_model` writes the rest again.

    Args:
        source: a folder in Hugging Face or PEFT format, a hub id, or a GGUF file, whose weights are dequantised.
        dtype: of the weights.

    Raises:
        ModelError: no such folder, no weights, weights that are missing, damaged or do not fit the configuration, or
            tensors that the model does not use; or a reward model, which has no language-model head.
        ConfigError: a GGUF file without the package `gguf`.
    """
    if is_gguf(source):
        return _load_dequantised(source, dtype)
    check_folder(source)
    require_language_model(source)
    adapter = adapter_base(source)
    if adapter is not None:
        return _load_merged(source, adapter, dtype)
    with loading_errors(source):
        # Without `ignore_mismatched_sizes` the library names the weights in a log only; they are refused below.
        model, report = generation_class(load_config(source)).from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    refuse_missing(source, report)
    keep_language_part(model, source)
    remove_dropout(model)
    return cast("PreTrainedModel", model)


def refuse_missing(source: str, report: dict[str, Any]) -> None:
    """Raise ModelError where weights were not in the files: they would be random numbers."""
    missing_weights = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report.get("mismatched_keys", ()))
    if missing_weights:
        raise ModelError(
            f"{len(missing_weights)} weights are not in the model's files, or of another shape; the first is "
            f"{missing_weights[0]}; they would be random numbers",
            where=source,
            fix="get the whole model again, or check that config.json belongs to these weights",
        )


def adapter_base(source: str) -> str | None:
    """The base model an adapter folder belongs to, or None where `source` is no adapter folder."""
    file = Path(source) / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not isinstance(base, str) or not base:
            raise ValueError("no name")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "the adapter does not say which model it belongs to",
            where=str(file),
            fix="set base_model_name_or_path in it to the base model's folder or hub id",
        ) from error
    return base


def _load_merged(source: str, base: str, dtype: torch.dtype) -> PreTrainedModel:
    model = load_model(base, dtype=dtype)
    refuse_tower_adapters(model, source)
    merged = merge_adapter_into(model, source)
    remove_dropout(merged)
    read_generation_config(merged, source)
    return merged


def _load_dequantised(source: str, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    with loading_errors(source):
        model, report = AutoModelForCausalLM.from_pretrained(
            Path(source).parent,
            gguf_file=Path(source).name,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    refuse_missing(source, report)
    read_gguf_ends(model, source)
    # The weights are ordinary ones now, to train and to save; an adapter on them must name the file as its base.
    model.hf_quantizer.remove_quantization_config(model)
    model.name_or_path = model.config.name_or_path = source
    remove_dropout(model)
    return model


def load_tokenizer(source: str, *, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Args:
        source: a folder, a hub id or a GGUF file.
        chat_template: a file holding a Jinja chat template to use instead of the tokenizer's own.

    Raises:
        ModelError: the tokenizer is missing, damaged, or without an end-of-sequence token.
        ConfigError: a GGUF file without the package `gguf`.
    """
    tokenizer = _load_any_tokenizer(source)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so no response could end",
            where=source,
            fix='set "eos_token" in its tokenizer_config.json',
        )
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problem = error.strerror if isinstance(error, OSError) else f"byte {error.start} is not UTF-8"
            raise ModelError(
                f"the chat template cannot be read: {problem}",
                where=chat_template,
                fix="name a UTF-8 file that holds a Jinja template",
            ) from error
    return tokenizer


def _load_any_tokenizer(source: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if is_gguf(source):
        check_gguf(source)
        with loading_errors(source):
            return gguf_tokenizer(source)
    _check_path(source)
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER):
        if (base := adapter_base(source)) is not None:
            return _load_any_tokenizer(base)
        raise ModelError(
            "the folder has no tokenizer",
            where=source,
            fix="copy the model's tokenizer.json and tokenizer_config.json into it, "
            "or save one there with tokenizer.save_pretrained(folder)",
        )
    with loading_errors(source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    return tokenizer


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raise ModelError where the tokenizer has ids the model has no embedding for."""
    rows = model.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError(
            f"the tokenizer has token ids up to {highest}, the model's embedding has {rows} rows (ids 0 to {rows - 1})",
            where=source,
            fix="use the tokenizer that came with the model, or grow the model first with "
            "model.resize_token_embeddings(len(tokenizer))",
        )


def load_config(source: str, *, weights: bool = True) -> PretrainedConfig:
    """The model's configuration, without its weights; errors as in `load_model`.

    Args:
        weights: whether a folder without weights is refused.
    """
    from transformers import AutoConfig

    if is_gguf(source):
        check_gguf(source)
        with loading_errors(source):
            return gguf_config(source)
    check_folder(source, weights=weights)
    with loading_errors(source):
        config: PretrainedConfig = AutoConfig.from_pretrained(source)
    return config


def context_length(config: PretrainedConfig) -> int | None:
    """Tokens the model was made for, or None where it has no limit."""
    for name in ("max_position_embeddings", "n_positions"):
        limit = getattr(text_config(config), name, None)
        if limit is not None:
            return int(limit)
    return None


def dropout_settings(config: PretrainedConfig) -> str:
    """The dropouts of a configuration, as ``name 0.1, ...``; empty where there are none."""
    dropouts = {
        name: value
        for name, value in text_config(config).to_dict().items()
        if ("drop" in name and isinstance(value, float) and value > 0)
    }
    return ", ".join(f"{name} {value:g}" for name, value in dropouts.items())


def remove_dropout(model: torch.nn.Module) -> None:
    """Set every dropout of the model to 0, so that log-ratios compare like with like."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _check_path(source: str) -> None:
    folder = Path(source)
    if not folder.exists():
        if source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise ModelError(
                "there is no such folder", where=source, fix="check the path; a hub id looks like org/name"
            )
    elif not folder.is_dir():
        raise ModelError("this is a file; a model is a folder", where=source, fix="name the folder that holds it")


def check_folder(source: str, *, weights: bool = True) -> None:
    """Raise ModelError where a local folder is no model: missing, a file, without configuration or weights."""
    _check_path(source)
    folder = Path(source)
    if not folder.exists() or (folder / "adapter_config.json").is_file():
        return
    if not (folder / "config.json").is_file():
        raise ModelError(
            "the folder has no config.json, so it is no model",
            where=source,
            fix="name the folder that save_pretrained wrote, or a run's output folder",
        )
    if weights and not any(True for pattern in _WEIGHTS for _ in folder.glob(pattern)):
        raise ModelError(
            "the folder has a config.json but no weights (*.safetensors)",
            where=source,
            fix="download the weights too, or name another folder",
        )


class loading_errors:
    """Context that turns a library's exception while loading into a ModelError that names the source."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, ModelError):
            return
        if not Path(self.source).exists():
            raise ModelError(
                "this is no local folder, and the model hub did not give it",
                where=self.source,
                fix="check the spelling and the connection, or download it first and name the folder",
            ) from error
        kind = "file" if Path(self.source).is_file() else "folder"
        raise ModelError(
            f"it cannot be loaded: {reason_of(error)}", where=self.source, fix=f"get the whole {kind} again"
        ) from error
