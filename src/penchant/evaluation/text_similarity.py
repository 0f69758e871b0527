"""Similarity of two texts: exact match, token F1 and ROUGE-L, or by meaning (BERTScore, sentence encoders)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from penchant.errors import ConfigError, require_extra
from penchant.models.loading import check_folder, context_length, load_config


def exact_match(answer: str, reference: str) -> float:
    """1 where the two say the same but for case, punctuation, articles and spaces (Rajpurkar et al. 2016), else 0."""
    return float(_plain(answer) == _plain(reference))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words, as `exact_match` reads them; two empty texts are alike."""
    said, wanted = (Counter(_plain(text).split()) for text in (answer, reference))
    if not said or not wanted:
        return float(said == wanted)
    return 2 * (said & wanted).total() / (said.total() + wanted.total())


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004), words unstemmed.

    Raises:
        ConfigError: the library is not installed.
    """
    with require_extra("recipes", "ROUGE needs rouge-score"):
        from rouge_score.rouge_scorer import RougeScorer
    return float(RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure)


def _plain(text: str) -> str:
    words = re.sub(rf"[{re.escape(string.punctuation)}]", "", text.lower()).split()
    return " ".join(word for word in words if word not in {"a", "an", "the"})


class BertScore:
    """F1 of greedily matched token embeddings (Zhang et al. 2020), not rescaled.

    Args:
        model: folder or hub id of an encoder, or of any language model.
        layers: whose hidden states are compared; None takes the last.

    Raises:
        ConfigError: the library is not installed, or the model has fewer layers.
        ModelError: there is no such model.
    """

    def __init__(self, model: str, layers: int | None = None) -> None:
        with require_extra("recipes", "BERTScore needs bert-score"):
            from bert_score import BERTScorer
        check_folder(model)
        config = load_config(model)
        most = config.num_hidden_layers
        if layers is not None and not 1 <= layers <= most:
            raise ConfigError(f"layer {layers} of {most}", where=model, fix=f"name one between 1 and {most}")
        self._scorer = BERTScorer(model_type=model, num_layers=layers or most)
        # A tokenizer without a limit says 1e30, which the library hands on to one that takes 64 bits.
        words = self._scorer._tokenizer
        words.model_max_length = min(words.model_max_length, context_length(config) or 512)

    def __call__(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        """Of each answer; 0 where it or its reference is empty."""
        found = [0.0] * len(answers)
        told = _told(answers, references)
        if told:
            _, _, scores = self._scorer.score([answers[n] for n in told], [references[n] for n in told])
            for n, value in zip(told, scores.tolist(), strict=True):
                found[n] = float(value)
        return found


class SentenceSimilarity:
    """Cosine of two texts' embeddings (Reimers and Gurevych 2019).

    Args:
        model: folder or hub id of a sentence-transformers model, or of any encoder, whose hidden states are averaged.

    Raises:
        ConfigError: the library is not installed.
        ModelError: there is no such model.
    """

    def __init__(self, model: str) -> None:
        with require_extra("recipes", "sentence embeddings need sentence-transformers"):
            from sentence_transformers import SentenceTransformer
        check_folder(model)
        self._model = SentenceTransformer(model)

    def __call__(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        """Of each answer, -1 to 1; 0 where it or its reference is empty."""
        found = [0.0] * len(answers)
        told = _told(answers, references)
        if told:
            ours, theirs = (
                self._model.encode([texts[n] for n in told], convert_to_tensor=True, show_progress_bar=False)
                for texts in (answers, references)
            )
            for n, value in zip(told, self._model.similarity_pairwise(ours, theirs).tolist(), strict=True):
                found[n] = float(value)
        return found


def _told(answers: Sequence[str], references: Sequence[str]) -> list[int]:
    """Where neither text is empty."""
    return [n for n, pair in enumerate(zip(answers, references, strict=True)) if all(text.strip() for text in pair)]
