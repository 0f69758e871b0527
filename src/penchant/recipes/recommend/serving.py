"""A trained model asked about one user: which of these titles comes next."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from penchant.data.groups import PreferenceGroup
from penchant.engine.distribution import World, local_device
from penchant.errors import ConfigError, DataError
from penchant.evaluation.files import write_atomically
from penchant.evaluation.held_out import score
from penchant.recipes.recommend.catalogue import rank_catalogue
from penchant.recipes.recommend.prompts import Wording

WORDING = "recommend.json"
"""Beside a model's weights: how the questions it was trained on were put."""


@dataclass(frozen=True)
class Suggestion:
    """A title, and how likely the model finds it.

    Attributes:
        log_prob: of the title after the question, nats.
        share: its probability among the titles offered.
    """

    title: str
    log_prob: float
    share: float


def suggest(
    model: str, history: Sequence[str], candidates: Sequence[str], wording: Wording | None = None
) -> list[Suggestion]:
    """The candidates from the likeliest down.

    Args:
        model: folder of a trained model.
        history: titles, the oldest first.
        candidates: titles to choose from, as the model's questions offered them.
        wording: how the question is put; None takes the model's own.

    Raises:
        DataError: no history, or not at least two different candidates.
        ConfigError: the model does not say how its questions were put.
    """
    before, offered = _checked(history, candidates)
    prompt = (wording or read_wording(model)).prompt(before, offered)
    group = PreferenceGroup(prompt, tuple(f" {title}" for title in offered))
    (scored,) = score(model, [group], World(0, 1, local_device()))
    return _ordered(offered, scored.log_probs)


def suggest_from_catalogue(
    model: str, history: Sequence[str], titles: Sequence[str], wording: Wording | None = None
) -> list[Suggestion]:
    """All titles that the history lacks, from the likeliest down; the question lists none. Otherwise as `suggest`."""
    before, offered = _checked(history, [title for title in dict.fromkeys(titles) if title not in history])
    (log_probs,) = rank_catalogue(model, [before], offered, wording or read_wording(model))
    return _ordered(offered, log_probs)


def _checked(history: Sequence[str], candidates: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    before, offered = (tuple(title.strip() for title in titles) for titles in (history, candidates))
    if not before or not all(before):
        raise DataError("the history is empty, or a title of it is", fix="give the titles taken before, oldest first")
    if len(set(offered)) < max(2, len(offered)) or not all(offered):
        different = len(set(filter(None, offered)))
        raise DataError(
            f"{len(offered)} candidates, {different} different ones; expected two or more, and none twice",
            fix="give each title to choose from once",
        )
    return before, offered


def _ordered(titles: Sequence[str], log_probs: Sequence[float]) -> list[Suggestion]:
    top = max(log_probs)
    total = sum(math.exp(each - top) for each in log_probs)
    found = [
        Suggestion(title, value, math.exp(value - top) / total) for title, value in zip(titles, log_probs, strict=True)
    ]
    return sorted(found, key=lambda each: -each.log_prob)


def write_wording(folder: Path, wording: Wording) -> None:
    """Into a model's folder."""
    write_atomically(folder / WORDING, json.dumps(asdict(wording), indent=2, ensure_ascii=False) + "\n")


def read_wording(model: str) -> Wording:
    """From a model's folder.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    file = Path(model) / WORDING
    try:
        return Wording(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"this model does not say how its questions are put: {error}",
            where=str(file),
            fix="name a model that `penchant recipe recommend` trained; in Python, `wording` will do",
        ) from error
