"""Tokenizers in GGUF's terms, after llama.cpp's `llama-vocab.cpp`: two kinds, and for one a name for how text is split.

`gpt2` is byte-level BPE; its merges are written, and the pattern that splits text is only named (`tokenizer.ggml.pre`).
`llama` is SentencePiece: no merges, a score for each token, and of two neighbours those that make the best token join.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penchant.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens, llama.cpp's `llama_token_type`."""

SPACE = "\u2581"
BYTE_LEVEL_SPLIT = "ByteLevel's own"
DIGITS = "single digits"
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITS = {
    "gpt-2": (BYTE_LEVEL_SPLIT,),
    "llama-bpe": (_LLAMA_3,),
    "qwen2": (_QWEN_2,),
    "smollm": (DIGITS, BYTE_LEVEL_SPLIT),
}
"""The rules that split text, one after the other, under each name."""


WHOLE_WORDS_FIRST = {"llama-bpe"}
"""Names under which llama.cpp turns a word that is a token into that token, whatever its merges are."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as a GGUF file holds it.

    Attributes:
        kind: "gpt2" or "llama".
        pre: how text is split; "default" for SentencePiece, which does not.
        tokens: texts of the tokens, by id.
        types: types of the tokens, by id.
        merges: merges of byte-level BPE, "left right"; else empty.
        scores: scores of SentencePiece, by id; else empty.
        space_prefix: whether a space is put before a text.
        add_bos: whether a text begins with the token for it.
        add_eos: whether it ends with one.
        notes: where llama.cpp makes other tokens of some texts.
    """

    kind: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    space_prefix: bool
    add_bos: bool
    add_eos: bool
    notes: list[str]


def build_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, where: str) -> Vocabulary:
    """The vocabulary of a tokenizer, as a GGUF file holds it.

    Args:
        rows: rows of the model's embedding; ids that the tokenizer does not use get placeholder tokens.
        where: the model's name, for errors.

    Raises:
        ModelError: it is neither of the two kinds, or does what neither can.
    """
    state = tokenizer_json(tokenizer, where)
    model = state["model"]
    if model["type"] != "BPE":
        raise _refusal(f"the tokenizer's model is {model['type']}", where)
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refusal("the tokenizer marks the parts of words", where)
    add_bos, add_eos = _added_special_tokens(tokenizer, where)
    tokens, types, notes = _tokens(tokenizer, state, rows)
    notes += _normalized_notes(tokenizer, state)
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    if model.get("byte_fallback"):
        space_prefix, space_notes = _spaces(state, where)
        types = _mark_byte_tokens(tokens, types, where)
        return Vocabulary(
            kind="llama",
            pre="default",
            tokens=tokens,
            types=types,
            merges=[],
            scores=_scores(tokens, types, merges, where),
            space_prefix=space_prefix,
            add_bos=add_bos,
            add_eos=add_eos,
            notes=notes + space_notes,
        )
    if any(" " in part for merge in merges for part in merge):
        raise _refusal("a merge of the tokenizer holds a space", where)
    pre = _pre_name(state, where)
    return Vocabulary(
        kind="gpt2",
        pre=pre,
        tokens=tokens,
        types=types,
        merges=[" ".join(merge) for merge in merges],
        scores=[],
        space_prefix=False,
        add_bos=add_bos,
        add_eos=add_eos,
        notes=notes + _normalizer_notes(state, where) + _whole_word_notes(state, pre),
    )


def _refusal(problem: str, where: str) -> ModelError:
    return ModelError(
        f"{problem}; GGUF files hold byte-level BPE and SentencePiece's BPE",
        where=where,
        fix="export a model with a tokenizer of one of these kinds",
    )


def tokenizer_json(tokenizer: PreTrainedTokenizerBase, where: str) -> dict[str, Any]:
    """The content of a tokenizer's tokenizer.json.

    Raises:
        ModelError: no tokenizer.json can describe it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal(
            f"the tokenizer is a {type(tokenizer).__name__}, which is not described by a tokenizer.json", where
        )
    state: dict[str, Any] = json.loads(backend.to_str())
    return state


def _added_special_tokens(tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[bool, bool]:
    """Whether the tokenizer puts bos before a text, and eos behind it."""
    plain_ids, full_ids = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    for bos in (False, True):
        for eos in (False, True):
            prefix, suffix = [tokenizer.bos_token_id] * bos, [tokenizer.eos_token_id] * eos
            if full_ids == prefix + plain_ids + suffix:
                return bos, eos
    raise _refusal("the tokenizer puts other tokens around a text than bos and eos", where)


def _tokens(
    tokenizer: PreTrainedTokenizerBase, state: dict[str, Any], rows: int
) -> tuple[list[str], list[int], list[str]]:
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [UNUSED] * rows
    for text, number in tokenizer.get_vocab().items():
        tokens[number], types[number] = text, NORMAL
    space_taking = 0
    for added in state["added_tokens"]:
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
        if added["normalized"] and state["model"].get("byte_fallback"):
            # The model looks for it where spaces have been replaced, and llama.cpp where they have not.
            tokens[added["id"]] = added["content"].replace(SPACE, " ")
        space_taking += added["lstrip"] or added["rstrip"] or added["single_word"]
    if tokenizer.unk_token_id is not None and state["model"].get("byte_fallback"):
        types[tokenizer.unk_token_id] = UNKNOWN
    notes = []
    if space_taking:
        notes.append(
            f"{space_taking} special tokens take the spaces beside them, or stand for whole words only; "
            "llama.cpp takes them as they are"
        )
    return tokens, types, notes


def _normalized_notes(tokenizer: PreTrainedTokenizerBase, state: dict[str, Any]) -> list[str]:
    """Notes on added tokens that this tokenizer looks for in the normalized text, and llama.cpp in the raw text."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None:
        return []
    texts = [added["content"].replace(SPACE, " ") for added in state["added_tokens"] if added["normalized"]]
    changed_texts = [text for text in texts if normalizer.normalize_str(text).replace(SPACE, " ") != text]
    if not changed_texts:
        return []
    example = changed_texts[0]
    note = f"{len(changed_texts)} added tokens are looked for in the normalized text (the first is {example!r}, "
    note += f"looked for as {normalizer.normalize_str(example)!r}), and llama.cpp looks for them in the text as it is: "
    note += "texts that hold them become other tokens there; "
    note += "before training, add them with AddedToken(text, normalized=False)"
    return [note]


def _flatten_steps(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a list of steps."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [part for inner_step in step[inner] for part in _flatten_steps(inner_step, inner)]


def _pre_name(state: dict[str, Any], where: str) -> str:
    splits = []
    steps = _flatten_steps(state["pre_tokenizer"], "pretokenizers")
    for step in steps:
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            splits += [BYTE_LEVEL_SPLIT] if step["use_regex"] else []
        elif step["type"] == "Digits" and step["individual_digits"]:
            splits.append(DIGITS)
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            splits.append(step["pattern"].get("Regex", "a plain text"))
        else:
            splits.append(step["type"])
    names = {rules: name for name, rules in SPLITS.items()}
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    if not byte_level or tuple(splits) not in names:
        raise ModelError(
            f"the tokenizer splits text in a way that has no name in GGUF files, as far as known here: {splits}",
            where=where,
            fix=f"known are the ways of {', '.join(SPLITS)}",
        )
    return names[tuple(splits)]


def _normalizer_notes(state: dict[str, Any], where: str) -> list[str]:
    steps = [step["type"] for step in _flatten_steps(state["normalizer"], "normalizers")]
    if not steps:
        return []
    if steps != ["NFC"]:
        raise _refusal(f"the tokenizer changes text before it splits it ({', '.join(steps)})", where)
    return ["the tokenizer composes characters first (NFC), llama.cpp does not: text that is not composed differs"]


def _whole_word_notes(state: dict[str, Any], pre: str) -> list[str]:
    from tokenizers import Tokenizer

    model, takes_whole_words = state["model"], pre in WHOLE_WORDS_FIRST
    if bool(model.get("ignore_merges")) == takes_whole_words:
        return []
    by_merges: Any = Tokenizer.from_str(json.dumps(state | {"model": model | {"ignore_merges": False}})).model
    words = model["vocab"].keys() - {token["content"] for token in state["added_tokens"]}
    unreached_count = sum(len(by_merges.tokenize(word)) != 1 for word in words)
    rule = "takes a word that is a token for it" if takes_whole_words else "goes by merges alone"
    return (
        [f"{unreached_count} tokens are not what their merges lead to, and llama.cpp {rule}"] if unreached_count else []
    )


def _spaces(state: dict[str, Any], where: str) -> tuple[bool, list[str]]:
    """Whether a space is put before a text, and where llama.cpp puts one more."""
    changes = _flatten_steps(state["normalizer"], "normalizers")
    splits = _flatten_steps(state["pre_tokenizer"], "pretokenizers")
    if changes:  # A Gemma also splits at spaces, and has replaced all of them.
        splits = [step for step in splits if step["type"] != "Split" or step["pattern"] != {"String": " "}]
    kinds = [step["type"] for step in (*changes, *splits)]
    if kinds in (["Prepend", "Replace"], ["Replace"]) and changes[-1]["content"] == SPACE:
        return kinds[0] == "Prepend", []
    if kinds == ["Metaspace"] and not splits[0]["split"]:
        scheme = splits[0]["prepend_scheme"]
        if scheme == "never":
            return False, []
        cases = "before a text that begins with one" + (" and after special tokens" if scheme == "first" else "")
        return True, [f"llama.cpp puts a space also {cases}, this tokenizer does not"]
    raise _refusal(f"the tokenizer falls back to bytes, but changes or splits text in other ways ({kinds})", where)


def _mark_byte_tokens(tokens: list[str], types: list[int], where: str) -> list[int]:
    numbers = {text: number for number, text in enumerate(tokens)}
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    missing_names = [name for name in names if name not in numbers]
    if missing_names:
        raise _refusal(f"the tokenizer falls back to bytes and has no token for {len(missing_names)} of them", where)
    for name in names:
        types[numbers[name]] = BYTE
    return types


def _scores(tokens: list[str], types: list[int], merges: list[tuple[str, ...]], where: str) -> list[float]:
    """A score for every token: the earlier its first merge, the higher; tokens that no merge makes come last.

    Raises:
        ModelError: joining by scores would not be joining by these merges.
    """
    order: dict[str, int] = {}
    last = None
    for merge in merges:
        merged = "".join(merge)
        if merged != last and merged in order:
            raise _refusal(f"the tokenizer's merges make {merged!r} at two priorities, which no score can", where)
        order.setdefault(merged, len(order))
        last = merged
    known_merges = set(merges)
    ordinary = {text for text, type_ in zip(tokens, types, strict=True) if type_ == NORMAL}
    for text in ordinary:
        for split_at in range(1, len(text)):
            parts = (text[:split_at], text[split_at:])
            if ordinary.issuperset(parts) and parts not in known_merges:
                raise _refusal(f"the tokenizer never joins {parts[0]!r} and {parts[1]!r}, SentencePiece would", where)
    return [
        -float(order.get(text, len(order) if type_ in (NORMAL, UNUSED) else 0))
        for text, type_ in zip(tokens, types, strict=True)
    ]
