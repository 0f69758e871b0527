"""Whether a text follows from another, by a classifier trained on natural language inference."""

from __future__ import annotations

from collections.abc import Sequence

from penchant.engine.distribution import local_device
from penchant.engine.loading import check_folder, context_length, loading_errors, refuse_missing
from penchant.errors import ModelError

BATCH = 16


class Entailment:
    """The probability of the label that a model calls entailment.

    Args:
        model: folder or hub id of a sequence-classification model, one of whose labels is named "entailment".

    Raises:
        ModelError: there is no such model, or none of its labels is entailment.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        check_folder(model)
        with loading_errors(model):
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            loaded, report = AutoModelForSequenceClassification.from_pretrained(model, output_loading_info=True)
        refuse_missing(model, report)
        self._model = loaded.to(local_device()).eval()
        names = {str(name).lower(): number for number, name in loaded.config.id2label.items()}
        if "entailment" not in names:
            raise ModelError(
                f"no label is called entailment; its labels are {', '.join(names)}",
                where=model,
                fix="name a classifier trained on natural language inference, with id2label in its config.json",
            )
        self._label = names["entailment"]
        self._longest = min(self._tokenizer.model_max_length, context_length(loaded.config) or 512)

    def __call__(self, premises: Sequence[str], hypotheses: Sequence[str]) -> list[float]:
        """Of each hypothesis, 0 to 1; a premise too long for the model is cut at its end, never the hypothesis."""
        import torch

        found: list[float] = []
        for start in range(0, len(premises), BATCH):
            batch = self._tokenizer(
                list(premises[start : start + BATCH]),
                list(hypotheses[start : start + BATCH]),
                truncation="only_first",
                max_length=self._longest,
                padding=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                logits = self._model(**{name: value.to(self._model.device) for name, value in batch.items()}).logits
            found += logits.float().softmax(-1)[:, self._label].tolist()
        return found
