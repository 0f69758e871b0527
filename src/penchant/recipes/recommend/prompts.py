"""Prompts of questions: a history, with or without a list of titles; and a question's candidates."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from penchant.api import ConfigError, DataError, PreferenceGroup, write_atomically
from penchant.recipes.recommend.histories import Histories, Question

NegativeSampling = Literal["uniform", "popularity"]

Item = TypeVar("Item")

WORDING = "recommend.json"
"""The file beside a model's weights with the wording of its training questions."""


def draw_candidates(
    question: Question,
    histories: Histories,
    titles: Mapping[str, str],
    *,
    until: float,
    count: int = 20,
    sampling: NegativeSampling = "uniform",
    seed: int = 0,
) -> tuple[str, ...]:
    """The question's candidates with the target at a random position.

    Args:
        until: items that the user took before this time are not drawn as negatives.
        count: the number of candidates including the target; no two have the same title.
        sampling: negatives are drawn uniformly, or in proportion to an item's number of interactions in training.

    Raises:
        DataError: the catalogue is too small.
    """
    draw = random.Random(f"{seed}/{question.user}/{question.number}")
    items_of_user = {item for item, time in histories.times_by_user[question.user].items() if time < until}
    names = {titles[question.target]}
    items: list[str] = []
    for item in _shuffled(histories, sampling, draw):
        if item in items_of_user or item == question.target or titles[item] in names:
            continue
        names.add(titles[item])
        items.append(item)
        if len(items) == count - 1:
            break
    else:
        raise DataError(
            f"the catalogue has {len(items)} titles for user '{question.user}' to draw {count - 1} others from",
            fix="lower min_count, or offer fewer candidates",
        )
    items.insert(draw.randrange(count), question.target)
    return tuple(items)


def _shuffled(histories: Histories, sampling: NegativeSampling, draw: random.Random) -> Sequence[str]:
    """The catalogue in a random order, weighted by popularity if the sampling is."""
    items = list(histories.items)
    if sampling == "uniform":
        draw.shuffle(items)
        return items
    return in_random_order(items, [histories.counts[item] for item in items], draw)


def in_random_order(items: Sequence[Item], weights: Sequence[float], draw: random.Random) -> list[Item]:
    """The items in a random order: every next one is drawn in proportion to its weight among the rest.

    Items of weight 0 come after all others, in an order of their own.
    """
    # Efraimidis and Spirakis 2006: the items with the largest u^(1/w) are a weighted sample without replacement.
    keys = [draw.random() ** (1 / weight) if weight else draw.random() - 1 for weight in weights]
    return [items[i] for i in sorted(range(len(items)), key=lambda i: -keys[i])]


@dataclass(frozen=True)
class Wording:
    """The wording of questions.

    Attributes:
        template: a text with the fields ``{history}`` and ``{candidates}``, which titles replace.
        open_template: a text with the field ``{history}`` alone, for questions without a list.
        separator: the text between two titles.
    """

    template: str = "Liked before, oldest first: {history}\nOne of these is liked next: {candidates}\nIt is"
    open_template: str = "Liked before, oldest first: {history}\nLiked next:"
    separator: str = "; "

    def __post_init__(self) -> None:
        for name, field, times in (
            ("template", "{history}", 1),
            ("template", "{candidates}", 1),
            ("open_template", "{history}", 1),
            ("open_template", "{candidates}", 0),
        ):
            count = getattr(self, name).count(field)
            if count != times:
                raise ConfigError(
                    f"the {name} holds {field} {count} times; expected {'once' if times else 'none'}",
                    fix="as in: 'Liked before: {history}. One of these is liked next: {candidates}. It is', and open: "
                    "'Liked before: {history}. Liked next:'",
                )

    def prompt(self, history: Sequence[str], candidates: Sequence[str]) -> str:
        """The prompt of a question with a list of candidates."""
        # A title may hold braces, so the template is split instead of formatted.
        fields = sorted(("{history}", "{candidates}"), key=self.template.index)
        beginning, remainder = self.template.split(fields[0])
        middle, end = remainder.split(fields[1])
        titles = {"{history}": history, "{candidates}": candidates}
        first_titles, second_titles = (self.separator.join(titles[field]) for field in fields)
        return f"{beginning}{first_titles}{middle}{second_titles}{end}"

    def open_prompt(self, history: Sequence[str]) -> str:
        """The prompt of a question without a list."""
        beginning, end = self.open_template.split("{history}")
        return f"{beginning}{self.separator.join(history)}{end}"


def draw_negatives(group: PreferenceGroup, n: int, weights: Sequence[float], seed: int) -> tuple[int, ...]:
    """The indices of n random candidates other than the target, drawn in proportion to their weights.

    Args:
        weights: the weight of every candidate.

    Raises:
        ConfigError: the question has fewer other candidates.
    """
    draw = random.Random(f"{seed}/{group.id}/negatives")
    negatives = _negative_indices(group, n)
    return tuple(in_random_order(negatives, [weights[k] for k in negatives], draw)[:n])


def hardest_negatives(group: PreferenceGroup, n: int, scores: Sequence[float]) -> tuple[int, ...]:
    """The indices of the n candidates other than the target with the highest scores; errors as in `draw_negatives`."""
    return tuple(sorted(_negative_indices(group, n), key=lambda k: (-scores[k], k))[:n])


def _negative_indices(group: PreferenceGroup, n: int) -> list[int]:
    """The indices of all candidates other than the target, at least n of them."""
    negatives = [k for k in range(len(group.candidates)) if k != group.preferred]
    if not 1 <= n <= len(negatives):
        raise ConfigError(
            f"{n} negatives of {len(negatives)} titles beside the target",
            fix=f"between 1 and {len(negatives)} negatives",
        )
    return negatives


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
