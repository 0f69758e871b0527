"""BERTScore: similarity of two texts by the hidden states of their tokens (Zhang et al. 2020, arXiv 1904.09675).

Legend: N texts in a batch, T and U tokens of an answer and of its reference, D width of the hidden states.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penchant.engine.device import local_device
from penchant.errors import ConfigError
from penchant.models.loading import check_folder, context_length, load_config, loading_errors, refuse_missing

BATCH = 32


@dataclass(frozen=True)
class TokenMatch:
    """How well the tokens of an answer and of its reference match, from -1 to 1; 0 where either text is empty.

    Attributes:
        precision: mean over the answer's tokens of the highest cosine with a token of the reference.
        recall: mean over the reference's tokens of the highest cosine with a token of the answer.
        f1: harmonic mean of the two.
    """

    precision: float = 0.0
    recall: float = 0.0
    f1: float = 0.0


class BertScore:
    """BERTScore, not rescaled, by the hidden states of any encoder.

    Special tokens at the ends of a text have no weight in the means, as in the authors' package, but may be matched.

    Args:
        model: folder or hub id of an encoder, also in the layout of sentence-transformers, or of a language model.
        layers: index of the layer whose hidden states are compared; None is the last.
        idf: weight a token by ``log((N + 1) / (n + 1))``, where n of a call's N references hold it, and not all alike.

    Raises:
        ConfigError: the model has fewer layers.
        ModelError: there is no such model, or weights are missing.
    """

    def __init__(self, model: str, layers: int | None = None, *, idf: bool = False) -> None:
        from transformers import AutoModel, AutoTokenizer

        check_folder(model)
        config = load_config(model)
        n_layers = config.num_hidden_layers
        if layers is not None and not 1 <= layers <= n_layers:
            raise ConfigError(f"layer {layers} of {n_layers}", where=model, fix=f"name one between 1 and {n_layers}")
        with loading_errors(model):
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            loaded, report = AutoModel.from_pretrained(model, output_loading_info=True)
        # The pooler is not used, and many encoders are saved without one.
        refuse_missing(model, report | {"missing_keys": [key for key in report["missing_keys"] if "pooler" not in key]})
        self._model = loaded.float().to(local_device()).eval()
        self._layer, self._idf = layers or n_layers, idf
        self._max_tokens = min(self._tokenizer.model_max_length, context_length(config) or 512)
        ends = (getattr(self._tokenizer, f"{name}_token_id") for name in ("cls", "sep", "bos", "eos"))
        self._end_ids = {end for end in ends if end is not None}

    def __call__(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        """F1 of every answer; 0 if the answer or its reference is empty."""
        return [match.f1 for match in self.match(answers, references)]

    def match(self, answers: Sequence[str], references: Sequence[str]) -> list[TokenMatch]:
        """Precision, recall and F1 of every answer with its reference."""
        matches = [TokenMatch()] * len(answers)
        texts = list(zip(answers, references, strict=True))
        pairs = {n: (self._ids(a), self._ids(r)) for n, (a, r) in enumerate(texts) if a.strip() and r.strip()}
        weights = _TokenWeights([reference for _, reference in pairs.values()] if self._idf else None, self._end_ids)
        # Sorted, so that texts of similar length are padded together.
        indices = sorted(pairs, key=lambda n: len(pairs[n][0]))
        for start in range(0, len(indices), BATCH):
            batch = indices[start : start + BATCH]
            ours, theirs = (self._encode([pairs[n][side] for n in batch], weights) for side in (0, 1))
            for n, match in zip(batch, _match_greedily(ours, theirs), strict=True):
                matches[n] = match
        return matches

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text.strip(), truncation=True, max_length=self._max_tokens))

    @torch.inference_mode()
    def _encode(self, ids: Sequence[list[int]], weights: _TokenWeights) -> _EncodedTexts:
        mask = _pad([[1] * len(row) for row in ids])
        inputs = {"input_ids": _pad(ids), "attention_mask": mask}
        output = self._model(
            **{name: value.to(self._model.device) for name, value in inputs.items()}, output_hidden_states=True
        )
        states = torch.nn.functional.normalize(output.hidden_states[self._layer], dim=-1)
        return _EncodedTexts(states.cpu(), mask.bool(), _pad([weights.of_text(row) for row in ids]))


class _TokenWeights:
    """The weight of every token of a text in the mean over its tokens.

    Args:
        references: token ids of the references, for weights by inverse document frequency; None weights all alike.
        end_ids: ids of special tokens without a weight.
    """

    def __init__(self, references: Sequence[list[int]] | None, end_ids: set[int]) -> None:
        self._end_ids = end_ids
        self._n_references = None if references is None else len(references)
        self._document_counts = Counter(token for reference in references or () for token in set(reference))

    def of_text(self, ids: Sequence[int]) -> list[float]:
        """Weights that sum to 1; where all would be 0, all tokens weigh the same."""
        weights = [0.0 if token in self._end_ids else self._of_token(token) for token in ids]
        total = sum(weights)
        return [weight / total for weight in weights] if total > 0 else [1 / len(ids)] * len(ids)

    def _of_token(self, token: int) -> float:
        if self._n_references is None:
            return 1.0
        return math.log((self._n_references + 1) / (self._document_counts[token] + 1))


@dataclass(frozen=True)
class _EncodedTexts:
    """The tokens of N texts.

    Attributes:
        states: [N, T, D] hidden states of length 1.
        mask: [N, T] False for padding.
        weights: [N, T] the tokens' weights, which sum to 1; 0 for padding.
    """

    states: Tensor
    mask: Tensor
    weights: Tensor


def _match_greedily(answers: _EncodedTexts, references: _EncodedTexts) -> list[TokenMatch]:
    """``P = sum_i w_i max_j x_i . y_j``, ``R = sum_j v_j max_i x_i . y_j``, ``F1 = 2 P R / (P + R)`` of every pair."""
    cosines = answers.states @ references.states.transpose(1, 2)  # [N, T, U]
    cosines = cosines.masked_fill(~(answers.mask[:, :, None] & references.mask[:, None, :]), -2.0)
    precision = (cosines.amax(2) * answers.weights).sum(1).tolist()
    recall = (cosines.amax(1) * references.weights).sum(1).tolist()
    return [TokenMatch(p, r, 2 * p * r / (p + r) if p + r > 0 else 0.0) for p, r in zip(precision, recall, strict=True)]


def _pad(rows: Sequence[Sequence[float]]) -> Tensor:
    """[N, T] the rows with zeros after the shorter ones."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
