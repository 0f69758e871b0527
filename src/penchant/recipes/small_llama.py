"""A small Llama with random weights and a tokenizer trained on given texts, where no pretrained model can be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from penchant.api import Section, whole_folder

SPECIAL = ("<pad>", "<bos>", "<eos>")


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model; the defaults give 2.6 million weights.

    Attributes:
        vocabulary: maximum number of tokens in the vocabulary; a small text gives fewer.
        hidden: width of the hidden states.
        layers: number of layers.
        heads: number of attention heads.
        context: maximum tokens of a sequence.
    """

    vocabulary: int = 4096
    hidden: int = 192
    layers: int = 4
    heads: int = 4
    context: int = 1024


class SizesConfig(Section):
    """`Sizes` as a section of a configuration."""

    vocabulary: int = Field(Sizes.vocabulary, ge=300)
    hidden: int = Field(Sizes.hidden, ge=32)
    layers: int = Field(Sizes.layers, ge=1)
    heads: int = Field(Sizes.heads, ge=1)
    context: int = Field(Sizes.context, ge=32)

    @model_validator(mode="after")
    def _heads_fit(self) -> SizesConfig:
        size, remainder = divmod(self.hidden, self.heads)
        if remainder or size % 2:
            raise ValueError(
                f"hidden is {self.hidden} and heads {self.heads}; expected heads of an even whole size, "
                f"as hidden={2 * self.heads * max(1, round(self.hidden / self.heads / 2))}"
            )
        return self

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.vocabulary, self.hidden, self.layers, self.heads, self.context)


def build_small_llama(folder: Path, texts: Sequence[str], sizes: Sizes, seed: int) -> None:
    """Write a model folder atomically: byte-level BPE trained on the texts, and random weights decided by the seed."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    pad, bos, eos = SPECIAL
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sizes.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    raw.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, SPECIAL.index(bos))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=pad, bos_token=bos, eos_token=eos, model_max_length=sizes.context
    )
    config = LlamaConfig(
        vocab_size=raw.get_vocab_size(),
        hidden_size=sizes.hidden,
        intermediate_size=round(sizes.hidden * 8 / 3 / 32) * 32,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=sizes.context,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index(pad),
        bos_token_id=SPECIAL.index(bos),
        eos_token_id=SPECIAL.index(eos),
    )
    torch.manual_seed(seed)
    # transformers writes config.json before the weights: a process killed between the two would leave half a model.
    with whole_folder(folder) as aside:
        tokenizer.save_pretrained(aside)
        LlamaForCausalLM(config).save_pretrained(aside)
