"""BERTScore against its definition."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from penchant.errors import ConfigError
from penchant.evaluation.similarity import BertScore

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
    found = BertScore(str(tiny_model), 1)(*zip(*PAIRS, strict=True))
    for value, (answer, reference) in list(zip(found, PAIRS, strict=True))[:2]:
        assert value == pytest.approx(by_hand(model, tokenizer, answer, reference, 1), abs=1e-5)
    assert found[1] == pytest.approx(1.0, abs=1e-5)
    assert found[0] < 1
    assert found[2:] == [0.0, 0.0]


def test_no_such_layer(tiny_model):
    with pytest.raises(ConfigError, match="layer 99 of"):
        BertScore(str(tiny_model), 99)
