"""GGUF models and tokenizers, read by `transformers`; what it would silently drop is corrected or refused here.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from penchant.errors import ModelError, require_extra
from penchant.models.gguf.vocabulary import (
    BYTE_LEVEL_SPLIT,
    CONTROL,
    DIGITS,
    SPACE,
    SPLITS,
    USER_DEFINED,
    WHOLE_WORDS_FIRST,
    tokenizer_json,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


def llama_cpp_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: str,
    pre: str | None,
    tokens: Sequence[str],
    types: Sequence[int],
    space_prefix: bool,
    where: str,
) -> PreTrainedTokenizerBase:
    """A tokenizer that `transformers` built from a GGUF file, splitting text as llama.cpp does.

    Without it text is split by GPT-2's rules where `transformers` does not know the name of others, tokens that the
    file does not have are added to its own, and added tokens with a space or another letter outside the byte alphabet
    are not recognized in text.

    Raises:
        ModelError: the way it splits text is unknown here.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = tokenizer_json(tokenizer, where)
    _add_all_tokens(state, tokens, types)
    if kind == "llama":
        _split_like_the_first_llama(state, space_prefix)
    elif kind == "gpt2":
        _split_by_name(state, pre, where)
    else:
        raise ModelError(f"its tokenizer is of the kind {kind!r}", where=where, fix="known are gpt2 and llama")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        chat_template=tokenizer.chat_template,
        **{name: tokenizer.special_tokens_map[name] for name in _NAMED if name in tokenizer.special_tokens_map},
    )


def _split_like_the_first_llama(state: dict[str, Any], space_prefix: bool) -> None:
    # transformers puts no space before a text that begins with one, and llama.cpp always does.
    steps = [{"type": "Prepend", "prepend": SPACE}] if space_prefix else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    state["normalizer"] = {"type": "Sequence", "normalizers": [*steps, replace]}
    state["pre_tokenizer"] = None


def _split_by_name(state: dict[str, Any], pre: str | None, where: str) -> None:
    if pre not in SPLITS:
        raise ModelError(
            f"its text is split by the rules named {pre!r}, which are not known here",
            where=where,
            fix=f"known are {', '.join(SPLITS)}; name the folder that the file was made from",
        )
    steps: list[dict[str, Any]] = []
    for step in SPLITS[pre]:
        if step == DIGITS:
            steps.append({"type": "Digits", "individual_digits": True})
        elif step != BYTE_LEVEL_SPLIT:
            steps.append({"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False})
    last = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": BYTE_LEVEL_SPLIT in SPLITS[pre],
    }
    state["normalizer"] = None
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*steps, last]}
    state["model"]["ignore_merges"] = pre in WHOLE_WORDS_FIRST


def _add_all_tokens(state: dict[str, Any], tokens: Sequence[str], types: Sequence[int]) -> None:
    """The file's control and user-defined tokens, and no others: matched as they are written, before text is split."""
    added = {token["id"]: token for token in state["added_tokens"] if token["id"] < len(tokens)}
    vocabulary = state["model"]["vocab"]
    spelled = {number: text for text, number in vocabulary.items()}
    for number, (text, type_) in enumerate(zip(tokens, types, strict=False)):
        if type_ not in (CONTROL, USER_DEFINED) or added.get(number, {}).get("content") == text:
            continue
        vocabulary.pop(spelled.get(number), None)
        vocabulary[text] = number
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added[number] = {"id": number, "content": text, **plain, "special": type_ == CONTROL}
    state["added_tokens"] = [added[number] for number in sorted(added)]


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
