"""Seven small references of six architectures and three tokenizers, trained from nothing on different parts of a text.

    python examples/real/references.py TEXTS.jsonl TEXTS.jsonl ... --output runs/real/references
    penchant compare examples/real/multi_reference.yaml

A file is .jsonl, of which all texts are read (columns named `id` aside), or plain text. Reference k is trained on file
k (files are taken in turn where there are fewer), the last on all of them; give the file of the pairs' own texts first.
The models have about a million weights: what is compared is weightings of references, not models.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from penchant import parse_config, train

ARCHITECTURES: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "phi3": Phi3Config,
    "gpt_neox": GPTNeoXConfig,
    "olmo2": Olmo2Config,
    "llama_all": LlamaConfig,
}
VOCABULARIES = (2048, 3072, 4096)
"""Of the three tokenizers; reference k has the one at k modulo three."""
SPECIAL = ("<pad>", "<bos>", "<eos>")
CHARACTERS = 800
CONTEXT = 1024


def strings(value: object) -> Iterator[str]:
    """Texts of more than twenty characters in a row of JSON."""
    if isinstance(value, str) and len(value) > 20:
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if "id" not in name:
                yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def read_texts(file: Path) -> list[str]:
    """Different texts of a file, cut into pieces of `CHARACTERS`."""
    content = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        whole = [text for line in content.splitlines() for text in strings(json.loads(line))]
    else:
        whole = [content]
    return [text[i : i + CHARACTERS] for text in dict.fromkeys(whole) for i in range(0, len(text), CHARACTERS)]


def build_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the texts."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=pad, bos_token=bos, eos_token=eos, model_max_length=CONTEXT
    )


def build_start(
    folder: Path, architecture: type[PretrainedConfig], tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    """Write a model with random weights and its tokenizer."""
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 4}
    if architecture is not GPTNeoXConfig:
        sizes["num_key_value_heads"] = 4
    config = architecture(
        **sizes,
        # Rows for tokens that the tokenizer's class of an architecture adds when it is loaded.
        vocab_size=len(tokenizer) + 64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_reference(start: Path, texts: Sequence[str], output: Path, steps: int, seed: int) -> None:
    """Train on the texts as they are."""
    data = start.with_suffix(".jsonl")
    shuffled = random.Random(seed).sample(list(texts), len(texts))
    data.write_text(
        "".join(json.dumps({"prompt": "", "completion": text}) + "\n" for text in shuffled), encoding="utf-8"
    )
    values = {
        "model": str(start),
        "data": {"train": str(data), "max_length": CONTEXT},
        "output": str(output),
        "objective": {"name": "sft"},
        "training": {"max_steps": steps, "batch_size": 8, "learning_rate": 2e-3, "schedule": "cosine", "seed": seed},
        "evaluation": {"samples": 0},
    }
    train(parse_config(values, "references.py"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, default=Path("runs/real/references"))
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args(arguments)
    parts = [read_texts(file) for file in options.files]
    everything = [text for part in parts for text in part]
    for k, (name, architecture) in enumerate(ARCHITECTURES.items()):
        output = options.output / name
        if output.exists():
            print(f"{output} is there")
            continue
        texts = everything if name == "llama_all" else parts[k % len(parts)]
        start = options.output / "start" / name
        build_start(start, architecture, build_tokenizer(everything, VOCABULARIES[k % 3]), seed=k)
        train_reference(start, texts, output, options.steps, seed=k)
        print(f"{output} was trained on {len(texts)} texts")


if __name__ == "__main__":
    main()
