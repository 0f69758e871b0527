"""Which expert answers a request: a question with examples, put to a model, its labels weighed by log-prob.

Nothing is parsed: the answer is the likelier of the labels. What a label gains from the question's form alone is taken
off ("calibrate before use", Zhao et al. 2021): its log-prob after an empty request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError, DataError
from penchant.evaluation.files import write_atomically

ROUTER = "router.json"

LogProbs = Callable[[Sequence[PreferenceGroup]], Sequence[Sequence[float]]]

EMPTY_REQUESTS = ("", "N/A", "...")


@dataclass(frozen=True)
class Decision:
    """Who answers.

    Attributes:
        likeliest: the expert whose label is likeliest.
        confidence: that label's probability among the labels.
        expert: who answers: the likeliest, or the fallback below the threshold.
    """

    expert: str
    likeliest: str
    confidence: float


@dataclass(frozen=True)
class Router:
    """A question with examples.

    Attributes:
        names: by expert, what the question calls its requests.
        asks: the expert the question is put to.
        examples: (request, expert), in the order they are shown.
        threshold: below this confidence the fallback answers.
        prior: by expert the log-prob of its label after an empty request; none before `calibrated`.
        lengths: by expert the tokens of its label, which its log-prob is divided by; none compares summed log-probs,
            of which a label of more tokens has less.
    """

    names: Mapping[str, str]
    asks: str
    examples: Sequence[tuple[str, str]]
    fallback: str
    threshold: float
    prior: Mapping[str, float] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shown = {expert for _, expert in self.examples}
        for expert in self.names:
            if expert not in shown:
                raise DataError(f"the router has no example of '{expert}'", fix="give at least one of each expert")
        unknown = sorted(shown - set(self.names))
        if unknown:
            raise DataError(
                f"an example is of '{unknown[0]}', which is no expert", fix=f"one of {', '.join(self.names)}"
            )
        for role, expert in (("fallback", self.fallback), ("asked model", self.asks)):
            if expert not in self.names:
                raise ConfigError(f"the {role} '{expert}' is no expert", fix=f"one of {', '.join(self.names)}")

    def question(self, request: str) -> PreferenceGroup:
        """What is asked: the labels are the candidates, in the order of `names`."""
        shown = [f"Request: {_one_line(text)}\nKind: {self.names[expert]}" for text, expert in self.examples]
        prompt = "\n\n".join([*shown, f"Request: {_one_line(request)}\nKind:"])
        return PreferenceGroup(prompt, tuple(f" {name}" for name in self.names.values()))

    def calibrated(self, log_probs: LogProbs) -> Router:
        """With the labels' log-probs after empty requests, their mean over three."""
        found = log_probs([self.question(request) for request in EMPTY_REQUESTS])
        means = [sum(each) / len(EMPTY_REQUESTS) for each in zip(*found, strict=True)]
        return replace(self, prior=dict(zip(self.names, means, strict=True)))

    def decide(self, log_probs: Sequence[float]) -> Decision:
        """From the labels' summed log-probs, in the order of `names`; the confidence is of the compared values."""
        values = [
            (log_prob - self.prior.get(name, 0.0)) / self.lengths.get(name, 1)
            for name, log_prob in zip(self.names, log_probs, strict=True)
        ]
        top = max(values)
        confidence = 1 / sum(math.exp(each - top) for each in values)
        likeliest = list(self.names)[values.index(top)]
        return Decision(likeliest if confidence >= self.threshold else self.fallback, likeliest, confidence)

    def save(self, folder: Path) -> None:
        """As `router.json`."""
        write_atomically(folder / ROUTER, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")


def load_router(folder: Path) -> Router:
    """From a folder that `Router.save` wrote.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    file = folder / ROUTER
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values["examples"] = tuple(tuple(each) for each in values["examples"])
        return Router(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"no router: {error}", where=str(file), fix="run the recipe's stage router") from error


def _one_line(text: str) -> str:
    return " ".join(text.split())
