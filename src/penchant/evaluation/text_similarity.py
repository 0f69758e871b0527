"""Similarity of two texts: exact match, token F1 and ROUGE-L, or the cosine of a sentence encoder's embeddings."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from penchant.errors import require_extra
from penchant.models.loading import check_folder


def exact_match(answer: str, reference: str) -> float:
    """1 if the texts are equal except for case, punctuation, articles and spaces (Rajpurkar et al. 2016), else 0."""
    return float(_plain(answer) == _plain(reference))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words, normalized as in `exact_match`; 1 for two empty texts."""
    answer_words, reference_words = (Counter(_plain(text).split()) for text in (answer, reference))
    if not answer_words or not reference_words:
        return float(answer_words == reference_words)
    return 2 * (answer_words & reference_words).total() / (answer_words.total() + reference_words.total())


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
        """Cosine for every answer, -1 to 1; 0 if the answer or its reference is empty."""
        scores = [0.0] * len(answers)
        indices = _nonempty_indices(answers, references)
        if indices:
            ours, theirs = (
                self._model.encode([texts[n] for n in indices], convert_to_tensor=True, show_progress_bar=False)
                for texts in (answers, references)
            )
            for n, value in zip(indices, self._model.similarity_pairwise(ours, theirs).tolist(), strict=True):
                scores[n] = float(value)
        return scores


def _nonempty_indices(answers: Sequence[str], references: Sequence[str]) -> list[int]:
    """Indices of the pairs in which neither text is empty."""
    return [n for n, pair in enumerate(zip(answers, references, strict=True)) if all(text.strip() for text in pair)]
