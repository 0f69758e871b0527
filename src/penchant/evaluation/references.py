"""Answers against reference texts: exact match, token F1, ROUGE-L."""

from __future__ import annotations

import re
import string
from collections import Counter

from penchant.errors import require_extra


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
