"""Where a response ends: also with the chat template's token, which is what training ends each response with."""

from __future__ import annotations

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from penchant.data.tokenization import tokenize_prompts
from penchant.engine.sampling import Sampling, sample
from penchant.evaluation.answering import ends_of, generate

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["<unk>", "user", "assistant", "the", "cat", "dog"]
END, TURN = 6, 8
NEXT = {"assistant": "cat", "cat": "<|im_end|>", "<|im_end|>": "user", "user": "dog", "dog": "dog"}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def base_tokenizer() -> PreTrainedTokenizerFast:
    """As of a base model with a ChatML template: its end-of-sequence token ends no turn."""
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS], special_tokens=True)
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = CHATML
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]) == [END, TURN]
    return tokenizer


@pytest.fixture
def follows(base_tokenizer) -> LlamaForCausalLM:
    """A model that says what stands in NEXT, and would go on after the end of its turn."""
    n = len(WORDS) + len(MARKS)
    config = LlamaConfig(
        vocab_size=n,
        hidden_size=12,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        eos_token_id=END,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight[:, :n] = torch.eye(n)
        for token, next_token in NEXT.items():
            token_id, next_id = base_tokenizer.convert_tokens_to_ids([token, next_token])
            model.lm_head.weight[next_id, token_id] = 10.0
    return model


def test_a_response_ends_with_the_turn(base_tokenizer, follows):
    prompts = tokenize_prompts([({"role": "user", "content": "the dog"},)], base_tokenizer)
    draw = Sampling(samples=2, max_new_tokens=5, temperature=0)
    samples = sample(follows, prompts, draw, ends=ends_of(follows, base_tokenizer))
    assert [(response.ids.tolist(), response.has_end) for response in samples[0]] == [([4, TURN], True)] * 2
    assert generate(follows, base_tokenizer, prompts, draw) == [[" cat", " cat"]]


def test_the_ends_are_of_the_model_the_tokenizer_and_the_template(base_tokenizer, follows):
    assert ends_of(follows, base_tokenizer) == [END, TURN]
    follows.generation_config.eos_token_id = [END, 5]
    assert ends_of(follows, base_tokenizer) == [5, END, TURN]
    base_tokenizer.chat_template = None
    assert ends_of(follows, base_tokenizer) == [5, END]
