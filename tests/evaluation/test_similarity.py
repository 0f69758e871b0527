"""Sentence embeddings against their definition."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from penchant.errors import ModelError
from penchant.evaluation.text_similarity import SentenceSimilarity

PAIRS = [("a b c d", "d c a"), ("a b", "a b"), ("", "a"), ("a", " ")]


@torch.no_grad()
def test_sentences_by_hand(tiny_model, tmp_path):
    """An encoder without a pooling of its own: hidden states are averaged."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    means = [
        [model(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0].mean(0) for text in pair]
        for pair in PAIRS[:2]
    ]
    expected = [float(torch.cosine_similarity(ours, theirs, dim=0)) for ours, theirs in means]
    scores = SentenceSimilarity(str(tmp_path))(*zip(*PAIRS, strict=True))
    assert scores == pytest.approx([*expected, 0.0, 0.0], abs=1e-5)
    assert scores[1] == pytest.approx(1.0, abs=1e-5)


def test_no_such_encoder(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        SentenceSimilarity(str(tmp_path / "none"))
