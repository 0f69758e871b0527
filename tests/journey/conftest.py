"""Starting models of five families, one tokenizer, and a few preference pairs: what a run sets out with."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from penchant.data.reading import read_groups
from penchant.data.tokenization import tokenize_groups
from penchant.data.tokenized import TokenizedGroup

WORDS = ("the", "old", "cat", "sees", "a", "big", "dog", "then", "it", "runs", "to", "small", "house", "by", "river")
SPECIAL = ["<pad>", "<s>", "</s>"]
VOCABULARY = 272
CONTEXT = 96
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 16,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 16,
}
_LINEAR = {
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 1,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_IMAGES = {"image_token_id": 268, "video_token_id": 269, "vision_start_token_id": 270, "vision_end_token_id": 271}

FAMILIES = {
    "llama-tied": lambda: hf.LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "qwen3": lambda: hf.Qwen3Config(**_SIZES, head_dim=8, tie_word_embeddings=False),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=CONTEXT, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, initializer_range=0.2,
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(**_SIZES, head_dim=8, sliding_window=16, sliding_window_pattern=2),
    "qwen3.5": lambda: hf.Qwen3_5Config(
        text_config={**_SIZES, **_LINEAR, "head_dim": 8}, vision_config=_VISION, **_IMAGES
    ),
}  # fmt: skip
CLASSES = {"qwen3.5": "Qwen3_5ForConditionalGeneration"}


def build(family: str) -> hf.PreTrainedModel:
    """A tiny random model of the family, whose log-probs are far from uniform."""
    torch.manual_seed(0)
    config = FAMILIES[family]()
    if family in CLASSES:
        return getattr(hf, CLASSES[family])(config)
    return hf.AutoModelForCausalLM.from_config(config)


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE of few merges, split as Llama 3 does, <s> in front."""
    raw = Tokenizer(models.BPE(ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=264, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([" ".join(WORDS)], trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def starting_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family, as its own library saves it."""
    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp("start") / family
        build(family).save_pretrained(folders[family])
        tokenizer().save_pretrained(folders[family])
    return folders


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file to train on and a held-out one."""
    draw = random.Random(0)

    def sentence() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 4)))

    folder = tmp_path_factory.mktemp("pairs")
    for name, rows in (("train", 8), ("held_out", 4)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
            for _ in range(rows):
                row = {"prompt": sentence(), "chosen": f" {sentence()}", "rejected": f" {sentence()}"}
                stream.write(json.dumps(row) + "\n")
    return folder / "train.jsonl", folder / "held_out.jsonl"


@pytest.fixture(scope="session")
def held_out(pairs: tuple[Path, Path]) -> list[TokenizedGroup]:
    """The held-out groups' ids."""
    return tokenize_groups(read_groups(pairs[1]).groups, tokenizer(), max_length=CONTEXT)[0]
