"""A classifier of texts that one's own labels call empathic or not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penchant.data.groups import PreferenceGroup, as_text
from penchant.errors import DataError, require_extra
from penchant.evaluation.statistics import roc_auc

FOLDS = 5


class EmpathyClassifier:
    """Logistic regression on tf-idf of words and pairs of words.

    It knows no more than its labels: where the empathic texts are all of one kind, it has learnt the kind.

    Args:
        labelled: groups of one candidate and its label (`unpaired` in docs/data-formats.md).

    Attributes:
        auc: the area under the ROC curve on held-out texts, `FOLDS` folds; what to think of its probabilities.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: a group without a label, or fewer than `FOLDS` texts of either kind.
    """

    def __init__(self, labelled: Sequence[PreferenceGroup]) -> None:
        with require_extra("recipes", "a classifier needs scikit-learn"):
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import LogisticRegression
            from sklearn.model_selection import StratifiedKFold, cross_val_predict
            from sklearn.pipeline import make_pipeline
        if any(group.labels is None for group in labelled):
            raise DataError("a text has no label", fix='a row is {"completion": ..., "label": true}')
        texts = [as_text(candidate) for group in labelled for candidate in group.candidates]
        labels = np.array([label for group in labelled for label in group.labels or ()])
        fewest = min(int(labels.sum()), int((~labels).sum()))
        if fewest < FOLDS:
            raise DataError(f"{fewest} texts of one of the two labels; {FOLDS} are needed", fix="label more texts")
        words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, max_features=50_000)
        self._model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000, class_weight="balanced"))
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        scores = cross_val_predict(self._model, texts, labels, cv=folds, method="decision_function")
        self.auc = roc_auc(scores[labels], scores[~labels])
        self._model.fit(texts, labels)

    def __call__(self, answers: Sequence[str]) -> list[float]:
        """Of each answer, the probability that the labels would call it empathic."""
        return [float(value) for value in self._model.predict_proba(list(answers))[:, 1]] if answers else []
