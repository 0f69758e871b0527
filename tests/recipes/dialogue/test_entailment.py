"""The probability of entailment against a plain forward, one pair at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from penchant.errors import ModelError
from penchant.recipes.dialogue.measures import Entailment

PAIRS = [("a b c d e", "a b"), ("b", "c d"), ("e", "e d c b a")]


def classifier(folder, tiny_model, labels):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        initializer_range=0.5,
        id2label=dict(enumerate(labels)),
        pad_token_id=tokenizer.pad_token_id,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def test_by_hand(tiny_model, tmp_path):
    folder = classifier(tmp_path / "nli", tiny_model, ["contradiction", "neutral", "ENTAILMENT"])
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = [float(model(**tokenizer(*pair, return_tensors="pt")).logits.softmax(-1)[0, 2]) for pair in PAIRS]
    probabilities = Entailment(folder)(*zip(*PAIRS, strict=True))
    assert probabilities == pytest.approx(expected, abs=1e-6)
    assert len({round(value, 4) for value in probabilities}) == len(PAIRS)


def test_a_long_premise_is_cut_and_never_the_hypothesis(tiny_model, tmp_path):
    nli = Entailment(classifier(tmp_path / "nli", tiny_model, ["no", "entailment"]))
    long = " ".join("abcde" * 6)
    values = nli([long, long, f"{long} a"], ["a b", "c d", "a b"])
    assert values[0] != pytest.approx(values[1])
    assert values[0] == pytest.approx(values[2])


def test_a_classifier_of_something_else(tiny_model, tmp_path):
    folder = classifier(tmp_path / "mood", tiny_model, ["glad", "sad"])
    with pytest.raises(ModelError, match="no label is called entailment; its labels are glad, sad"):
        Entailment(folder)
    with pytest.raises(ModelError, match="weights are not in the model's files"):
        Entailment(str(tiny_model))
