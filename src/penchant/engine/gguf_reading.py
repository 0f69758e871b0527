"""GGUF files as models, read by `transformers`; what it would silently drop is corrected or refused here.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from penchant.engine.gguf_tokenizer import llama_cpp_tokenizer
from penchant.errors import ModelError, require_extra

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_ROPE_FREQS = "rope_freqs.weight"


def is_gguf(source: str) -> bool:
    """Whether a model's name is that of a GGUF file, whether or not it exists."""
    return source.endswith(".gguf") and not Path(source).is_dir()


def gguf_library() -> ModuleType:
    """The package `gguf`, imported when it is needed.

    Raises:
        ConfigError: it is missing.
    """
    with require_extra("gguf", "GGUF files need gguf"):
        import gguf
    return gguf


def check_gguf(source: str) -> None:
    """Raise ModelError where the file is missing, ConfigError where the package is."""
    gguf_library()
    if not Path(source).is_file():
        raise ModelError("there is no such file", where=source, fix="check the path")


def gguf_config(source: str) -> PretrainedConfig:
    """The configuration of the model in a file, with its scaled positions, which `transformers` leaves out.

    Raises:
        ModelError: something in the file changes what the model computes, and `transformers` would not read it.
        Exception: the libraries raise errors of any class about a damaged file.
    """
    from transformers import AutoConfig

    file = gguf_library().GGUFReader(source)
    config: PretrainedConfig = AutoConfig.from_pretrained(Path(source).parent, gguf_file=Path(source).name)
    _refuse_biases(source, file)
    config.rope_parameters = {**config.rope_parameters, **_scaled_positions(source, file, config)}
    return config


def gguf_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a file, splitting text as llama.cpp does.

    Raises:
        ModelError: the way it splits text, or spells its special tokens, is unknown here.
        Exception: the libraries raise errors of any class about a damaged file.
    """
    from transformers import AutoTokenizer

    # Opened first, so that a truncated file is an error also where only its tokenizer is read.
    file = gguf_library().GGUFReader(source)
    return llama_cpp_tokenizer(
        AutoTokenizer.from_pretrained(Path(source).parent, gguf_file=Path(source).name),
        kind=_value(file, "tokenizer.ggml.model"),
        pre=_value(file, "tokenizer.ggml.pre"),
        types=_value(file, "tokenizer.ggml.token_type") or [],
        tokens=_value(file, "tokenizer.ggml.tokens") or [],
        space_prefix=_value(file, "tokenizer.ggml.add_space_prefix") is not False,
        where=source,
    )


def gguf_ends(source: str) -> list[int]:
    """The ids that end a response, as llama.cpp reads them: eos, end of turn, end of message."""
    file = gguf_library().GGUFReader(source)
    numbers = (_value(file, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return list(dict.fromkeys(int(number) for number in numbers if number is not None))


def _value(file: Any, key: str) -> Any:
    field = file.get_field(key)
    return None if field is None else field.contents()


def _refuse_biases(source: str, file: Any) -> None:
    biases = [tensor.name for tensor in file.tensors if tensor.name.endswith(".bias")]
    if _value(file, "general.architecture") == "llama" and biases:
        raise ModelError(
            f"it is a Llama with biases, which transformers leaves out; the first is {biases[0]}",
            where=source,
            fix="name the folder that the file was made from",
        )


def _scaled_positions(source: str, file: Any, config: PretrainedConfig) -> dict[str, Any]:
    architecture = _value(file, "general.architecture")
    kind = _value(file, f"{architecture}.rope.scaling.type") or "none"
    factor = _value(file, f"{architecture}.rope.scaling.factor") or 1.0
    factors = [tensor.data.tolist() for tensor in file.tensors if tensor.name == _ROPE_FREQS]
    old = _value(file, f"{architecture}.rope.scale_linear") is not None
    if old or kind not in ("none", "linear") or (factors and kind == "linear"):
        raise ModelError(
            f"its positions are scaled in a way that transformers does not read ({kind})",
            where=source,
            fix="name the folder that the file was made from",
        )
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if factors:
        # One divisor for each frequency, at any length: of transformers' rules only longrope has these.
        return {
            "rope_type": "longrope",
            "short_factor": factors[0],
            "long_factor": factors[0],
            "attention_factor": 1.0,
            "original_max_position_embeddings": config.max_position_embeddings,
        }
    return {}
