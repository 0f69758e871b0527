"""Tiny models and tokenizers of every kind that GGUF files hold, for the tests of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CORPUS = [
    "The old cat's bowl isn't empty; it costs 12345 crowns and 99 pence.",
    "  def f(x):\n\treturn x ** 2\n\n\nprint(f(2024))  # naïve café, 日本語 日本, здравствуй",
    "get_weather(city='Paris', days=3), get_weather(city=\"Rome\")",
] * 3
AWKWARD = [
    "the cat",
    " the cat",
    "   three spaces, then two  between and one behind ",
    "lines\n\n\n and\r\n\ttabs\t\t",
    "it's we'LL I'M 1 12 123 1234 1234567",
    "naïve café 日本語 🙂🙂 здравствуй ½ ²",
    "<bos>in the middle<eos> and <|im_start|>user\nhi<|im_end|>\n",
    "get_weather(city='Paris', days=3)",
    "",
]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def pre_tokenizer(pre: str) -> Any:
    """The pre-tokenizer that llama.cpp knows under this name."""
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    pattern = {"llama-bpe": LLAMA_3, "qwen2": QWEN_2}[pre]
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def with_special_tokens(raw: Tokenizer, *, bos: bool = True) -> hf.PreTrainedTokenizerFast:
    """A tokenizer with special tokens, a chat template, and bos before each text."""
    raw.add_tokens([AddedToken("<think>", normalized=False)])
    if bos:
        number = raw.token_to_id("<bos>")
        raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", number)])
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=TEMPLATE, **names)


def byte_level(pre: str = "gpt-2", *, bos: bool = True, nfc: bool = False) -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE trained on the corpus."""
    raw = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    raw.pre_tokenizer = pre_tokenizer(pre)
    raw.normalizer = normalizers.NFC() if nfc else None
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    return with_special_tokens(raw, bos=bos)


def sentence_piece(prefix: str = "prepend") -> hf.PreTrainedTokenizerFast:
    """BPE as SentencePiece does it: any two neighbours that make a token may join, the best token first.

    Args:
        prefix: "prepend", "none" or "first" for a space before a text; "gemma" for none, splits at spaces as a Gemma
            has them, runs of spaces as added tokens, and ids in another order than the merges.
    """
    spaced_texts = [text.replace(" ", "▁") for text in CORPUS]
    trained_tokenizer = Tokenizer(models.BPE())
    trained_tokenizer.train_from_iterator(spaced_texts, trainers.BpeTrainer(vocab_size=160, show_progress=False))
    pieces = [piece for piece, _ in sorted(trained_tokenizer.get_vocab().items(), key=lambda item: item[1])]
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
    names = ["<unk>", *SPECIAL, *byte_names, *(pieces[::-1] if prefix == "gemma" else pieces)]
    vocabulary = {name: number for number, name in enumerate(names)}
    piece_set = set(pieces)
    merges = [
        (piece[:split_at], piece[split_at:])
        for piece in pieces
        for split_at in range(1, len(piece))
        if piece[:split_at] in piece_set and piece[split_at:] in piece_set
    ]
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.add_special_tokens(SPECIAL)
    replace = normalizers.Replace(" ", "▁")
    if prefix == "first":
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        steps = [normalizers.Prepend("▁")] if prefix == "prepend" else []
        raw.normalizer = replace if prefix == "gemma" else normalizers.Sequence([*steps, replace])
    if prefix == "gemma":
        raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        raw.add_tokens([AddedToken("▁" * length, normalized=True) for length in (2, 3)])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = with_special_tokens(raw)
    tokenizer.unk_token = "<unk>"
    return tokenizer


def tokenizer_of(kind: str) -> hf.PreTrainedTokenizerFast:
    """A tokenizer as the models of this kind usually have it."""
    if kind == "Llama":
        return byte_level()
    if kind.startswith("Qwen"):
        return byte_level("qwen2", bos=False, nfc=True)
    return sentence_piece("gemma" if kind.startswith("Gemma") else "prepend")


def sizes(**changes: Any) -> dict[str, Any]:
    """Sizes of a tiny model with grouped queries."""
    return {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "initializer_range": 0.2,
        "rms_norm_eps": 3e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "tie_word_embeddings": False,
    } | changes


def build(folder: Path, kind: str, tokenizer: Any, *, spare: int = 0, **changes: Any) -> Path:
    """Write a model folder; every weight is random, norms and biases too.

    Args:
        kind: the name of the configuration's class, without "Config".
        spare: rows of the embedding beyond the tokenizer's ids.
    """
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    rope = {"rope_parameters": GEMMA_3_ROPE} if kind == "Gemma3Text" else {}
    config = getattr(hf, f"{kind}Config")(**sizes(vocab_size=len(tokenizer) + spare, **ids, **rope, **changes))
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "tie_word_embeddings": True}
GEMMA_3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-without-groups": ("Llama", {"num_key_value_heads": 4}),
    "llama-other-heads": ("Llama", {"head_dim": 32}),
    "llama-spare-rows": ("Llama", {"spare": 11}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}),
    "llama-3": ("Llama", {"rope_parameters": LLAMA_3_ROPE}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-tied": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 92, "head_dim": 32}),
    "gemma2-tied": ("Gemma2", {**GEMMA, "num_hidden_layers": 3}),
    "gemma3-tied": ("Gemma3Text", {**GEMMA, "num_hidden_layers": 7}),
    "gemma3": ("Gemma3Text", {**GEMMA, "tie_word_embeddings": False}),
}
"""By what is special about it a model: its kind and its sizes."""
