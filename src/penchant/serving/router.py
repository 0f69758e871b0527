"""The router chooses the expert of a request by the log-probs of the experts' labels after a few-shot question.

The likeliest label wins, so no generated text has to be parsed. The log-prob of a label after an empty request is
subtracted, which removes the bias of the question's form ("calibrate before use", Zhao et al. 2021).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from penchant.data.groups import PreferenceGroup, as_messages
from penchant.errors import ConfigError, DataError
from penchant.storage.files import write_atomically

ROUTER = "router.json"

LogProbs = Callable[[Sequence[PreferenceGroup]], Sequence[Sequence[float]]]

EMPTY_REQUESTS = ("", "N/A", "...")


@dataclass(frozen=True)
class Decision:
    """The choice of an expert.

    Attributes:
        expert: the expert that answers: the likeliest one, or the fallback below the threshold.
        likeliest: the expert with the likeliest label.
        confidence: probability of that label among the labels.
    """

    expert: str
    likeliest: str
    confidence: float


@dataclass(frozen=True)
class Router:
    """A few-shot question whose likeliest label decides the expert.

    Attributes:
        names: label of each expert's requests in the question, by expert.
        asks: the expert whose model scores the labels.
        examples: (request, expert) pairs, in the order of the prompt.
        fallback: the expert that answers below the threshold.
        threshold: confidence below which the fallback answers.
        prior: log-prob of each expert's label after an empty request, in nats; empty before `calibrated`.
        lengths: number of tokens of each expert's label, by which its log-prob is divided; empty to compare summed
            log-probs, which favour short labels.
        chat: ask in a user's message and expect a label as the assistant's, for models with a chat template.
    """

    names: Mapping[str, str]
    asks: str
    examples: Sequence[tuple[str, str]]
    fallback: str
    threshold: float
    prior: Mapping[str, float] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    chat: bool = False

    def __post_init__(self) -> None:
        example_experts = {expert for _, expert in self.examples}
        for expert in self.names:
            if expert not in example_experts:
                raise DataError(f"the router has no example of '{expert}'", fix="give at least one of each expert")
        unknown = sorted(example_experts - set(self.names))
        if unknown:
            raise DataError(
                f"an example is for '{unknown[0]}', which is not an expert", fix=f"one of {', '.join(self.names)}"
            )
        for role, expert in (("fallback", self.fallback), ("asked model", self.asks)):
            if expert not in self.names:
                raise ConfigError(f"the {role} '{expert}' is not an expert", fix=f"one of {', '.join(self.names)}")

    def question(self, request: str) -> PreferenceGroup:
        """The question about a request as a group, whose candidates are the labels in the order of `names`."""
        example_lines = [f"Request: {_one_line(text)}\nKind: {self.names[expert]}" for text, expert in self.examples]
        prompt = "\n\n".join([*example_lines, f"Request: {_one_line(request)}\nKind:"])
        group = PreferenceGroup(prompt, tuple(f" {name}" for name in self.names.values()))
        if not self.chat:
            return group
        return as_messages(replace(group, candidates=tuple(self.names.values())))

    def calibrated(self, log_probs: LogProbs) -> Router:
        """The router with `prior`: the labels' mean log-probs after the empty requests.

        Args:
            log_probs: function from groups to the summed log-prob of each candidate, in nats.
        """
        rows = log_probs([self.question(request) for request in EMPTY_REQUESTS])
        means = [sum(values) / len(EMPTY_REQUESTS) for values in zip(*rows, strict=True)]
        return replace(self, prior=dict(zip(self.names, means, strict=True)))

    def decide(self, log_probs: Sequence[float]) -> Decision:
        """The decision; its confidence is a softmax over the calibrated and normalized values.

        Args:
            log_probs: summed log-prob of each label in nats, in the order of `names`.
        """
        values = [
            (log_prob - self.prior.get(name, 0.0)) / self.lengths.get(name, 1)
            for name, log_prob in zip(self.names, log_probs, strict=True)
        ]
        top = max(values)
        confidence = 1 / sum(math.exp(value - top) for value in values)
        likeliest = list(self.names)[values.index(top)]
        return Decision(likeliest if confidence >= self.threshold else self.fallback, likeliest, confidence)

    def save(self, folder: Path) -> None:
        """Write the router to `router.json` in a folder."""
        write_atomically(folder / ROUTER, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")


def load_router(folder: Path) -> Router:
    """The router of a folder that `Router.save` wrote.

    Raises:
        ConfigError: there is no router in the folder, or its file is damaged.
    """
    file = folder / ROUTER
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values["examples"] = tuple(tuple(example) for example in values["examples"])
        return Router(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"no router: {error}", where=str(file), fix="run the recipe's stage router") from error


def _one_line(text: str) -> str:
    return " ".join(text.split())
