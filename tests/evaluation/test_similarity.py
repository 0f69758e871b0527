"""BERTScore and sentence embeddings against their definitions."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from penchant.errors import ConfigError, ModelError
from penchant.evaluation.text_similarity import BertScore, SentenceSimilarity

PAIRS = [("a b c d", "d c a"), ("a b", "a b"), ("", "a"), ("a", " ")]


def by_hand(model, tokenizer, answer, reference, layer):
    states = []
    for text in (answer, reference):
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=True)])
        hidden = model(ids, output_hidden_states=True).hidden_states[layer][0]
        states.append(torch.nn.functional.normalize(hidden, dim=-1))
    similar = states[0] @ states[1].T
    precision, recall = similar.max(1).values.mean(), similar.max(0).values.mean()
    return float(2 * precision * recall / (precision + recall))


@torch.no_grad()
def test_by_hand(tiny_model):
    model = AutoModel.from_pretrained(tiny_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    scores = BertScore(str(tiny_model), 1)(*zip(*PAIRS, strict=True))
    for value, (answer, reference) in list(zip(scores, PAIRS, strict=True))[:2]:
        assert value == pytest.approx(by_hand(model, tokenizer, answer, reference, 1), abs=1e-5)
    assert scores[1] == pytest.approx(1.0, abs=1e-5)
    assert scores[0] < 1
    assert scores[2:] == [0.0, 0.0]


def test_no_such_layer(tiny_model):
    with pytest.raises(ConfigError, match="layer 99 of"):
        BertScore(str(tiny_model), 99)


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
