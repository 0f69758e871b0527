"""Suggestions of a trained model for one user."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from penchant.api import ConfigError, DataError, PreferenceGroup, World, score, write_atomically
from penchant.recipes.recommend.catalogue import rank_catalogue
from penchant.recipes.recommend.prompts import Wording

WORDING = "recommend.json"
"""The file beside a model's weights with the wording of its training questions."""


@dataclass(frozen=True)
class Suggestion:
    """A title and its probability.

    Attributes:
        log_prob: the log-prob of the title after the prompt, in nats.
        share: the title's probability among the candidates.
    """

    title: str
    log_prob: float
    share: float


def suggest(
    model: str, history: Sequence[str], candidates: Sequence[str], wording: Wording | None = None
) -> list[Suggestion]:
    """The candidates in descending order of their probability.

    Args:
        model: folder of a trained model.
        history: titles taken before, the oldest first.
        candidates: titles to choose from.
        wording: the wording of the question; None for that of the model's training.

    Raises:
        DataError: the history is empty, or there are fewer than two different candidates.
        ConfigError: the model's folder has no wording.
    """
    titles_before, titles = _check_titles(history, candidates)
    prompt = (wording or read_wording(model)).prompt(titles_before, titles)
    group = PreferenceGroup(prompt, tuple(f" {title}" for title in titles))
    (scored,) = score(model, [group], World.single())
    return _sorted_suggestions(titles, scored.log_probs)


def suggest_from_catalogue(
    model: str, history: Sequence[str], titles: Sequence[str], wording: Wording | None = None
) -> list[Suggestion]:
    """All titles outside the history in descending order of their probability; otherwise as `suggest`.

    The question has no list of candidates.
    """
    titles_before, new_titles = _check_titles(
        history, [title for title in dict.fromkeys(titles) if title not in history]
    )
    (log_probs,) = rank_catalogue(model, [titles_before], new_titles, wording or read_wording(model))
    return _sorted_suggestions(new_titles, log_probs)


def _check_titles(history: Sequence[str], candidates: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The stripped history and candidates.

    Raises:
        DataError: the history is empty, or there are fewer than two different candidates.
    """
    titles_before, titles = (tuple(title.strip() for title in texts) for texts in (history, candidates))
    if not titles_before or not all(titles_before):
        raise DataError("the history is empty, or a title of it is", fix="give the titles taken before, oldest first")
    if len(set(titles)) < max(2, len(titles)) or not all(titles):
        different = len(set(filter(None, titles)))
        raise DataError(
            f"{len(titles)} candidates, {different} different ones; expected two or more, and none twice",
            fix="give each title to choose from once",
        )
    return titles_before, titles


def _sorted_suggestions(titles: Sequence[str], log_probs: Sequence[float]) -> list[Suggestion]:
    top = max(log_probs)
    total = sum(math.exp(log_prob - top) for log_prob in log_probs)
    suggestions = [
        Suggestion(title, value, math.exp(value - top) / total) for title, value in zip(titles, log_probs, strict=True)
    ]
    return sorted(suggestions, key=lambda suggestion: -suggestion.log_prob)


def write_wording(folder: Path, wording: Wording) -> None:
    """Write the wording to a model's folder."""
    write_atomically(folder / WORDING, json.dumps(asdict(wording), indent=2, ensure_ascii=False) + "\n")


def read_wording(model: str) -> Wording:
    """The wording in a model's folder.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    file = Path(model) / WORDING
    try:
        return Wording(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"this model's folder does not hold the wording of its questions: {error}",
            where=str(file),
            fix="name a model that `penchant recipe recommend` trained; in Python, `wording` will do",
        ) from error
