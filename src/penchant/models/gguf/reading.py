"""GGUF models and tokenizers, read by `transformers`; what it would silently drop is corrected or refused here.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from penchant.errors import ModelError, require_extra
from penchant.models.gguf.tensors import FAMILIES, layer_types, query_scale, rope_parameters
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


def _join_by_scores(state: dict[str, Any], file: Any) -> None:
    from transformers.tokenization_utils_base import generate_merges

    scores = dict(zip(*(_value(file, f"tokenizer.ggml.{name}") for name in ("tokens", "scores")), strict=True))
    state["model"]["merges"] = generate_merges(state["model"]["vocab"], scores)
    # transformers puts no space before a text that begins with one, and llama.cpp always does.
    prefixed = _value(file, "tokenizer.ggml.add_space_prefix") is not False
    steps = [{"type": "Prepend", "prepend": SPACE}] if prefixed else []
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


def _add_all_tokens(state: dict[str, Any], file: Any) -> None:
    """The file's control and user-defined tokens, and no others: matched as they are written, before text is split."""
    tokens, types = (_value(file, f"tokenizer.ggml.{name}") or [] for name in ("tokens", "token_type"))
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
    """The configuration of the model in a file, with what `transformers` leaves out.

    Raises:
        ModelError: something in the file changes what the model computes, and `transformers` would not read it.
        Exception: the libraries raise errors of any class about a damaged file.
    """
    from transformers import AutoConfig, LlamaConfig

    file = gguf_library().GGUFReader(source)
    architecture = _value(file, "general.architecture")
    if architecture not in (architectures := {family.architecture for family in FAMILIES.values()}):
        raise _refusal(f"it is a {architecture}; GGUF files are read of {', '.join(sorted(architectures))}", source)
    config: PretrainedConfig = AutoConfig.from_pretrained(Path(source).parent, gguf_file=Path(source).name)
    if config.model_type == "mistral":
        # transformers takes a Llama by the name "mistral" for one, with a window, and then cannot read its weights.
        config = LlamaConfig(**config.to_diff_dict() | {"model_type": "llama"})
    _refuse_biases(source, file)
    _set_heads(source, file, config)
    _set_positions(source, file, config)
    if FAMILIES[config.model_type].full_period > 1:
        _set_windows_and_caps(source, file, config)
    return config


def gguf_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a file, splitting text as llama.cpp does.

    What `transformers` builds splits text by GPT-2's rules where it does not know the name of others, merges a Gemma's
    tokens in the order of their ids, and does not recognize added tokens with letters outside the byte alphabet.

    Raises:
        ModelError: the way it splits text, or spells its special tokens, is unknown here.
        Exception: the libraries raise errors of any class about a damaged file.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # Opened first, so that a truncated file is an error also where only its tokenizer is read.
    file = gguf_library().GGUFReader(source)
    tokenizer = AutoTokenizer.from_pretrained(Path(source).parent, gguf_file=Path(source).name)
    state = tokenizer_json(tokenizer, source)
    _add_all_tokens(state, file)
    kind = _value(file, "tokenizer.ggml.model")
    if kind == "llama":
        _join_by_scores(state, file)
    elif kind == "gpt2":
        _split_by_name(state, _value(file, "tokenizer.ggml.pre"), source)
    else:
        raise ModelError(f"its tokenizer is of the kind {kind!r}", where=source, fix="known are gpt2 and llama")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        chat_template=tokenizer.chat_template,
        **{name: tokenizer.special_tokens_map[name] for name in _NAMED if name in tokenizer.special_tokens_map},
    )


def gguf_ends(source: str) -> list[int]:
    """The ids that end a response, as llama.cpp reads them: eos, end of turn, end of message."""
    file = gguf_library().GGUFReader(source)
    numbers = (_value(file, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return list(dict.fromkeys(int(number) for number in numbers if number is not None))


def _value(file: Any, key: str) -> Any:
    field = file.get_field(key)
    return None if field is None else field.contents()


def _refusal(problem: str, source: str) -> ModelError:
    return ModelError(problem, where=source, fix="name the folder that the file was made from")


def _refuse_biases(source: str, file: Any) -> None:
    biases = [tensor.name for tensor in file.tensors if tensor.name.endswith(".bias")]
    if (architecture := _value(file, "general.architecture")) != "qwen2" and biases:
        problem = f"it is a {architecture} with biases, which transformers leaves out; the first is {biases[0]}"
        raise _refusal(problem, source)


def _set_heads(source: str, file: Any, config: PretrainedConfig) -> None:
    architecture = _value(file, "general.architecture")
    names = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    sizes = {size for name in names if (size := _value(file, f"{architecture}.{name}")) is not None}
    if len(sizes) > 1:
        raise _refusal("its keys, values and rotated parts of heads differ in size", source)
    config.head_dim = sizes.pop() if sizes else config.hidden_size // config.num_attention_heads


def _set_windows_and_caps(source: str, file: Any, config: PretrainedConfig) -> None:
    architecture = FAMILIES[config.model_type].architecture
    pattern = _value(file, f"{architecture}.attention.sliding_window_pattern")
    windows = [layer_type == "sliding_attention" for layer_type in layer_types(config)]
    if pattern not in (None, FAMILIES[config.model_type].full_period, windows):
        raise _refusal("its sliding windows are in other layers than usual", source)
    if architecture == "gemma3" and _value(file, f"{architecture}.attention.sliding_window") is None:
        config.layer_types = ["full_attention"] * len(windows)
    config.query_pre_attn_scalar = query_scale(config)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        setattr(config, name, _value(file, f"{architecture}.{name}") or getattr(config, name))


def _set_positions(source: str, file: Any, config: PretrainedConfig) -> None:
    architecture = _value(file, "general.architecture")
    kind = _value(file, f"{architecture}.rope.scaling.type") or "none"
    factor = _value(file, f"{architecture}.rope.scaling.factor") or 1.0
    factors = [tensor.data.tolist() for tensor in file.tensors if tensor.name == _ROPE_FREQS]
    old = _value(file, f"{architecture}.rope.scale_linear") is not None
    if old or kind not in ("none", "linear") or (factors and kind == "linear"):
        raise _refusal(f"its positions are scaled in a way that transformers does not read ({kind})", source)
    rope = rope_parameters(config)
    rope["rope_theta"] = _value(file, f"{architecture}.rope.freq_base") or 10000.0
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": factor}
    if factors:
        # One divisor for each frequency, at any length: of transformers' rules only longrope has these.
        rope |= {
            "rope_type": "longrope",
            "short_factor": factors[0],
            "long_factor": factors[0],
            "attention_factor": 1.0,
            "original_max_position_embeddings": config.max_position_embeddings,
        }
    if "sliding_attention" in config.rope_parameters:
        base = _value(file, f"{architecture}.rope.freq_base_swa") or 10000.0
        config.rope_parameters["sliding_attention"]["rope_theta"] = base
