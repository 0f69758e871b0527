"""What is timed: models and data made from seeds, each pair of them a named workload.

A workload's folder holds what every side reads:

    model/        weights and tokenizer in Hugging Face format
    groups.jsonl  one positive and its negatives a row, for Penchant
    pairs.jsonl   each (positive, negative) as a row of its own, for TRL
    ids.json      the same as token ids: steps x groups x [prompt, [responses]], for the plain sides and the FLOP count

The tokenizer has one token for each word, so that text and ids are the same data; each side counts the tokens it saw,
and the driver compares the counts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Literal

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
EOS = SPECIAL.index("</s>")

Range = tuple[int, int]
"""Least and most, both included."""

Group = tuple[list[int], list[list[int]]]
"""Token ids of a prompt, and of its responses: the positive first; each response ends with </s>."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama.

    Attributes:
        tied: whether the head is the embedding.
        biased: whether attention has biases, as Qwen2's has. (The architecture stays Llama's: to a Qwen2 transformers
            gives Qwen2's tokenizer, whatever tokenizer lies in its folder.)
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool = True
    biased: bool = False

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def backbone_weights(self) -> int:
        """Weights of the layers' matrix products."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary


@dataclass(frozen=True)
class Workload:
    """A model and data for it.

    Attributes:
        asks: the question it answers.
        prompt: tokens of a prompt.
        response: tokens of a response, its end included.
        negatives: of each prompt; groups come in twos whose negatives add up to the same number, so that every step
            has as many pairs.
        batch: groups in a step; even where the number of negatives varies.
        parts: equal ones that peers cut a step into, to run within the card's memory; Penchant cuts it by its own
            token budget.
        sides: the contestants, in the order they are run.
        dtype: of the matrix products; trained weights are float32.
        rank: of the adapters, where only these are trained (the frozen weights are then in `dtype`).
    """

    name: str
    asks: str
    shape: Shape
    sides: tuple[str, ...]
    prompt: Range
    response: Range
    negatives: Range = (1, 1)
    batch: int = 4
    parts: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    rank: int | None = None

    @property
    def pairs_per_step(self) -> int:
        return self.batch * sum(self.negatives) // 2

    def tiny(self) -> Workload:
        """The same at a size for tests: every code path, no meaning in its times."""
        heads = 2 if self.shape.kv_heads < self.shape.heads else 4
        shape = replace(
            self.shape, hidden=32, layers=2, heads=4, kv_heads=heads, intermediate=64, vocabulary=256 + len(SPECIAL)
        )
        few = (max(1, self.negatives[0] // 3), max(1, self.negatives[1] // 3))
        return replace(
            self,
            shape=shape,
            prompt=_eighth(self.prompt),
            response=_eighth(self.response),
            negatives=few,
            batch=2,
            parts=min(self.parts, 2),
        )


def _eighth(lengths: Range) -> Range:
    return max(3, lengths[0] // 8), max(5, lengths[1] // 8)


SMALL = Shape(hidden=384, layers=6, heads=6, kv_heads=6, intermediate=1024, vocabulary=32_000)
WIDE = Shape(hidden=256, layers=4, heads=4, kv_heads=4, intermediate=688, vocabulary=151_936)
QWEN = Shape(hidden=896, layers=24, heads=14, kv_heads=2, intermediate=4864, vocabulary=151_936, biased=True)
LLAMA = Shape(hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14_336, vocabulary=128_256, tied=False)

EVERY_PEER = ("penchant", "trl_default", "trl_best", "trl_compact", "trl_group_by_length", "padded")
MAIN_PEERS = ("penchant", "trl_best", "trl_compact", "padded")
GPU_PEERS = ("penchant", "trl_best", "trl_liger", "trl_flash_pref")

PAIRS = Workload("pairs", "pairs of uneven lengths, 23M Llama", SMALL, EVERY_PEER, (40, 200), (30, 200))
QWEN_PAIRS = Workload(
    "qwen_0.5b_pairs",
    "pairs of equal lengths, shape of Qwen2.5-0.5B",
    QWEN,
    GPU_PEERS,
    prompt=(256, 256),
    response=(256, 256),
    batch=32,
    parts=4,
    dtype="bfloat16",
    device="cuda",
)
QWEN_K8 = replace(
    QWEN_PAIRS,
    name="qwen_0.5b_k8",
    asks="eight candidates of 64 tokens after 512, shape of Qwen2.5-0.5B",
    sides=("penchant", "trl_best", "penchant_s_dpo", "padded_groups"),
    prompt=(512, 512),
    response=(64, 64),
    negatives=(7, 7),
    batch=16,
    parts=8,
)

WORKLOADS = {
    workload.name: workload
    for workload in (
        PAIRS,
        Workload("long_prompts", "prompts far longer than responses", SMALL, MAIN_PEERS, (420, 480), (45, 75)),
        Workload(
            "negatives",
            "one positive against 7 to 15 short negatives",
            SMALL,
            ("penchant", "trl_best", "trl_compact", "penchant_s_dpo", "padded_groups"),
            prompt=(230, 270),
            response=(8, 14),
            negatives=(7, 15),
            batch=2,
        ),
        replace(PAIRS, name="vocabulary", asks="pairs, a vocabulary of 152k", shape=WIDE, sides=MAIN_PEERS, batch=2),
        replace(
            PAIRS, name="pairs_bf16", asks="pairs, matrix products in bfloat16", sides=MAIN_PEERS, dtype="bfloat16"
        ),
        replace(
            PAIRS,
            name="lora",
            asks="pairs: LoRA of rank 16 on every linear layer, against all weights",
            sides=("penchant", "penchant_lora"),
            rank=16,
        ),
        QWEN_PAIRS,
        QWEN_K8,
        replace(
            QWEN_PAIRS,
            name="llama_8b_pairs",
            asks="pairs of equal lengths, shape of Llama-3.1-8B, LoRA",
            shape=LLAMA,
            sides=("penchant_lora", "trl_lora"),
            batch=16,
            parts=4,
            rank=16,
        ),
        replace(
            QWEN_K8,
            name="llama_8b_k8",
            asks="eight candidates of 64 tokens after 512, shape of Llama-3.1-8B, LoRA",
            shape=LLAMA,
            sides=("penchant_lora", "trl_lora"),
            batch=8,
            parts=8,
            rank=16,
        ),
    )
}


def draw(workload: Workload, steps: int, seed: int = 0) -> list[list[Group]]:
    """The groups of each step."""
    source = random.Random(seed)
    low, high = workload.negatives

    def words(lengths: Range, end: bool) -> list[int]:
        n = source.randint(*lengths) - end
        return [source.randrange(len(SPECIAL), workload.shape.vocabulary) for _ in range(n)] + [EOS] * end

    def group(negatives: int) -> Group:
        return words(workload.prompt, False), [words(workload.response, True) for _ in range(1 + negatives)]

    def step() -> list[Group]:
        counts: list[int] = []
        while len(counts) < workload.batch:
            n = source.randint(low, high)
            counts += [n, low + high - n]
        return [group(n) for n in counts[: workload.batch]]

    if low != high and workload.batch % 2:
        raise ValueError(f"{workload.name}: an odd batch cannot have as many pairs in every step")
    return [step() for _ in range(steps)]


def build(workload: Workload, folder: Path, steps: int, seed: int = 0, models: Path | None = None) -> list[list[Group]]:
    """Write a workload's folder; see the module's docstring.

    Args:
        models: keeps the models of workloads that share a shape, the folder then a link into it; large ones are made
            and written once.
    """
    all_steps = write_data(workload, folder, steps, seed)
    model = folder / "model"
    if models is not None:
        sizes = "-".join(str(value) for value in astuple(workload.shape))
        model_folder = models.resolve() / f"{sizes}-{workload.dtype}-{workload.device}-{seed}"
        model.symlink_to(model_folder)
        if model_folder.exists():
            return all_steps
        model = model_folder
    save_tokenizer(workload.shape.vocabulary, model)
    new_model = make_model(workload, seed)
    # pairs_bf16 trains float32 masters, which need not start from bfloat16 numbers; large shapes save half the disk.
    new_model.save_pretrained(model)
    del new_model
    if workload.device == "cuda":
        # The sides need the card's memory.
        empty_card()
    return all_steps


def write_data(workload: Workload, folder: Path, steps: int, seed: int = 0) -> list[list[Group]]:
    """Write a workload's folder without its model; the groups of each step."""
    folder.mkdir(parents=True)
    all_steps = draw(workload, steps, seed)
    (folder / "ids.json").write_text(json.dumps(all_steps))
    with (folder / "groups.jsonl").open("w") as groups, (folder / "pairs.jsonl").open("w") as pairs:
        for prompt, responses in (group for step in all_steps for group in step):
            # The side's own tokenizer puts the end behind each response.
            positive, *negatives = (" " + _text(ids[:-1]) for ids in responses)
            row = {"prompt": _text(prompt), "chosen": positive}
            groups.write(json.dumps({**row, "rejected": negatives}) + "\n")
            for negative in negatives:
                pairs.write(json.dumps({**row, "rejected": negative}) + "\n")
    return all_steps


def tokens_by_candidate(step: Sequence[Group]) -> int:
    """Tokens of a step where the prompt is read once for each of its candidates: rows of 1 + N."""
    return sum(len(responses) * len(prompt) + sum(map(len, responses)) for prompt, responses in step)


def tokens_by_pair(step: Sequence[Group]) -> int:
    """Tokens of a step where each (positive, negative) is a pair of its own."""
    return sum(2 * len(prompt) + len(responses[0]) + len(r) for prompt, responses in step for r in responses[1:])


def _text(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def save_tokenizer(vocabulary: int, folder: Path) -> None:
    """Write a tokenizer with one token for each word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), vocabulary))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, bos, eos, unk = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=bos, eos_token=eos, pad_token=pad, unk_token=unk
    )
    tokenizer.save_pretrained(folder)


def llama_config(shape: Shape) -> Any:
    """The transformers configuration of a shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        attention_bias=shape.biased,
        # Three times the usual spread at this size: losses then move enough in a few steps for their agreement to say
        # something.
        initializer_range=1.2 / shape.hidden**0.5,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )


def make_model(workload: Workload, seed: int = 0) -> Any:
    """A transformers model of a workload's shape and dtype with random weights, on its device where that is there."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    # Sixteen gigabytes of random numbers are best drawn where they are fast.
    with torch.device("cuda" if workload.device == "cuda" and torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(llama_config(workload.shape), dtype=getattr(torch, workload.dtype))


def empty_card() -> None:
    """Give back a card's memory that nothing uses."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
