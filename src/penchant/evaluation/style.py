"""Audit of style leaks: how well words without their order, or length alone, predict the preferred answer.

A preference model or a DPO run learns whatever separates the two sides most easily. If a classifier on bags of words is
nearly always right, the preference reflects a style, a phrase or a length, not the content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penchant.data.groups import PreferenceGroup, as_text
from penchant.errors import DataError, require_extra
from penchant.evaluation.statistics import Estimate, bootstrap_mean

FOLDS = 5
N_TERMS = 15


@dataclass(frozen=True)
class StyleLeak:
    """Accuracy of predicting the better answer from bags of words and from length.

    Attributes:
        pairs, prompts: numbers of pairs and of prompts.
        words: share of held-out pairs in which the classifier scores the better answer higher, a tie counting half;
            by `FOLDS` folds that share no prompt; the interval is over prompts.
        longer: share of pairs in which the better answer has more words, a tie counting half.
        of_better, of_worse: words and word pairs with the largest weights for either side, over all data.
    """

    pairs: int
    prompts: int
    words: Estimate
    longer: Estimate
    of_better: tuple[str, ...]
    of_worse: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "words": self.words.to_json(), "longer": self.longer.to_json()}


def style_leak(groups: Sequence[PreferenceGroup]) -> StyleLeak:
    """Held-out accuracy of a Bradley-Terry model on counts of words and word pairs.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: too few prompts, or no pair.
    """
    with require_extra("recipes", "an audit needs scikit-learn"):
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold
    better, worse, prompts = [], [], []
    for group in groups:
        for i, j in group.pairs:
            better.append(as_text(group.candidates[i]))
            worse.append(as_text(group.candidates[j]))
            prompts.append(as_text(group.prompt))
    numbers = {prompt: n for n, prompt in enumerate(dict.fromkeys(prompts))}
    if len(numbers) < FOLDS:
        raise DataError(f"{len(numbers)} prompts with pairs; {FOLDS} are needed", fix="take more data")
    clusters = np.array([numbers[prompt] for prompt in prompts])
    counter = CountVectorizer(ngram_range=(1, 2), min_df=2, token_pattern=r"(?u)\b\w+\b", max_features=50_000)
    try:
        counter.fit([*better, *worse])
    except ValueError as error:
        raise DataError("no word occurs twice", fix="take more data") from error
    # Every pair is fitted with its mirror image, so that only the difference matters.
    differences = counter.transform(better) - counter.transform(worse)

    def fit_classifier(rows: Any) -> Any:
        labels = np.concatenate([np.ones(len(rows)), np.zeros(len(rows))])
        model = LogisticRegression(fit_intercept=False, C=0.1, max_iter=1000)
        return model.fit(_with_mirrors(differences[rows]), labels)

    scores = np.zeros(len(better))
    for rows, held_out in GroupKFold(FOLDS).split(better, groups=clusters):
        scores[held_out] = fit_classifier(rows).decision_function(differences[held_out])
    lengths = np.array([len(a.split()) - len(b.split()) for a, b in zip(better, worse, strict=True)])
    weights = fit_classifier(np.arange(len(better))).coef_[0]
    names = counter.get_feature_names_out()
    order = np.argsort(-weights, kind="stable")
    return StyleLeak(
        pairs=len(better),
        prompts=len(numbers),
        words=bootstrap_mean(_wins(scores), clusters),
        longer=bootstrap_mean(_wins(lengths), clusters),
        of_better=tuple(names[n] for n in order[:N_TERMS] if weights[n] > 0),
        of_worse=tuple(names[n] for n in order[::-1][:N_TERMS] if weights[n] < 0),
    )


def _with_mirrors(rows: Any) -> Any:
    from scipy.sparse import vstack

    return vstack([rows, -rows])


def _wins(values: Any) -> Any:
    return (values > 0) + 0.5 * (values == 0)
