"""How alike two texts are in meaning: token by token (BERTScore), or as whole sentences."""

from __future__ import annotations

from collections.abc import Sequence

from penchant.engine.loading import check_folder, context_length, load_config
from penchant.errors import ConfigError, require_extra


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
