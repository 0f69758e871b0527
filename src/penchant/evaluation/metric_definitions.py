"""One line for each held-out metric: what it is, in which unit, and over what it is a mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from penchant.evaluation.one_preferred import CHOICE_METRICS, CHOSEN_FROM
from penchant.evaluation.orders import ORDER_METRICS, ORDERED

LOG_PROB = ("summed log-prob", "nats")
MEAN_LOG_PROB = ("log-prob per token, end-of-turn included", "nats per token")
LOG_RATIO = ("log-ratio log pi(y|x) - log ref(y|x)", "nats, not multiplied by beta")
REWARD = ("reward of the model's head", "in the head's own unit")

_OVER_PAIRS = "mean over a group’s pairs, then over groups"
_OF_PAIRS = {
    "accuracy": f"share of pairs whose preferred response has the higher {{score}} (a tie is wrong); {_OVER_PAIRS}",
    "auc": "ROC-AUC of {score}: preferred against other responses of all prompts (a tie is half); pooled over pairs",
    "margin": f"{{score}}: preferred minus other response; {{unit}}; {_OVER_PAIRS}",
    "ties": f"share of pairs with exactly equal {{score}}; {_OVER_PAIRS}",
    "length_accuracy": f"share of pairs whose preferred response has more tokens (a tie is wrong); {_OVER_PAIRS}",
}
_OF_TEXT = {
    "eval_loss": "mean negative log-prob of a token, end-of-turn included; nats per token; over the tokens of "
    "responses that nothing is preferred to",
    "perplexity": "exp of eval_loss",
}


def definitions(names: Iterable[str], scores: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """A line for each of these metrics.

    Args:
        names: of metrics, each perhaps with a prefix.
        scores: prefix -> the score that is compared, and its unit; the empty prefix is the main one's.
    """
    templates = {
        **_OF_PAIRS,
        **_OF_TEXT,
        **{name: f"{line}; mean {ORDERED}" for name, line in ORDER_METRICS.items()},
        **{name: f"{line}; mean {CHOSEN_FROM}" for name, line in CHOICE_METRICS.items()},
    }
    lines = {}
    for name in names:
        prefix = next(p for p in scores if name.startswith(p) and name[len(p) :] in templates)
        score, unit = scores[prefix]
        lines[name] = templates[name[len(prefix) :]].format(score=score, unit=unit)
    return lines
