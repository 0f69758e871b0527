"""BERTScore against loops over its published formula in float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from penchant.errors import ConfigError, ModelError
from penchant.evaluation.bert_score import BertScore, TokenMatch

WORDS = ["the", "lender", "gives", "notice", "a", "fee", "to", "borrower", "within", "three", "days", "loan"]
ANSWERS = ["the lender gives a notice", "a loan", "fee fee to the borrower within three days", "loan", "", "a"]
REFERENCES = ["the lender gives notice to the borrower within three days", "a loan", "notice", "a fee", "a", " "]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A folder of a BERT of random weights without a pooler, which puts special tokens around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("encoder")
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    raw = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@torch.no_grad()
def by_loops(folder: Path, answer: str, reference: str, layer: int, idf: dict[int, float]) -> TokenMatch:
    """One pair alone, so that nothing is padded; only words have a weight."""
    model, tokenizer = AutoModel.from_pretrained(folder).double().eval(), AutoTokenizer.from_pretrained(folder)
    texts = []
    for text in (answer, reference):
        ids = tokenizer.encode(text)
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].tolist()
        texts.append((ids, [[x / math.hypot(*state) for x in state] for state in hidden]))

    def mean_of_best(ours, theirs):
        total = weight = 0.0
        for token, state in zip(*ours, strict=True):
            best = max(sum(x * y for x, y in zip(state, other, strict=True)) for other in theirs[1])
            total += (token > 2) * idf[token] * best
            weight += (token > 2) * idf[token]
        return total / weight

    precision, recall = mean_of_best(*texts), mean_of_best(*texts[::-1])
    return TokenMatch(precision, recall, 2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.parametrize("layer", [1, None])
def test_precision_recall_and_f1(encoder, layer, idf):
    ids = [set(AutoTokenizer.from_pretrained(encoder).encode(text)) for text in REFERENCES[:4]]
    weights = {n: math.log(5 / (1 + sum(n in row for row in ids))) if idf else 1.0 for n in range(len(WORDS) + 4)}
    matches = BertScore(str(encoder), layer, idf=idf).match(ANSWERS, REFERENCES)
    for match, answer, reference in list(zip(matches, ANSWERS, REFERENCES, strict=True))[:4]:
        expected = by_loops(encoder, answer, reference, layer or 2, weights)
        assert vars(match) == pytest.approx(vars(expected), abs=1e-5)
    assert matches[0].precision != pytest.approx(matches[0].recall, abs=0.001)
    assert vars(matches[1]) == pytest.approx(dict.fromkeys(("precision", "recall", "f1"), 1.0), abs=1e-5)
    assert matches[4:] == [TokenMatch()] * 2


def test_a_call_gives_f1(encoder):
    score = BertScore(str(encoder))
    assert score(ANSWERS, REFERENCES) == [match.f1 for match in score.match(ANSWERS, REFERENCES)]


def test_words_of_every_reference_weigh_alike_where_nothing_else_is_said(encoder):
    """Their inverse frequencies are 0, which no mean can be taken of."""
    [match] = BertScore(str(encoder), idf=True).match(["a fee"], ["a fee"])
    assert match.f1 == pytest.approx(1.0, abs=1e-5)


def test_texts_beyond_the_context_are_cut(encoder):
    [match] = BertScore(str(encoder)).match([" ".join(["a"] * 40)], [" ".join(["a"] * 14)])
    assert match.f1 == pytest.approx(1.0, abs=1e-5)


def test_a_language_model_is_an_encoder_too(tiny_model):
    scores = BertScore(str(tiny_model), 1)(["a b c d", "a b"], ["d c a", "a b"])
    assert scores[1] == pytest.approx(1.0, abs=1e-5)
    assert scores[0] < 1


def test_no_such_layer(encoder):
    with pytest.raises(ConfigError, match="layer 99 of"):
        BertScore(str(encoder), 99)


def test_no_such_encoder(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        BertScore(str(tmp_path / "none"))
