"""Prompts of questions: a history, with or without a list of titles."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError
from penchant.recipes.recommend.candidates import in_random_order


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
