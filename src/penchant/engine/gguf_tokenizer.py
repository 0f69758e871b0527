"""Tokenizers that `transformers` builds from GGUF files, corrected to split text as llama.cpp's llama-vocab.cpp."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penchant.engine.gguf_vocabulary import (
    BYTE_LEVEL_SPLIT,
    CONTROL,
    DIGITS,
    SPACE,
    SPLITS,
    USER_DEFINED,
    WHOLE_WORDS_FIRST,
    tokenizer_json,
)
from penchant.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
