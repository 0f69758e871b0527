"""Questions as text: a history, perhaps a list of titles, to be answered with one title."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError
from penchant.recipes.recommend.candidates import in_random_order


@dataclass(frozen=True)
class Wording:
    """How a question is put.

    Attributes:
        template: text with ``{history}`` and ``{candidates}``, each replaced by titles.
        open_template: text with ``{history}`` alone, for a question that offers no list.
        separator: between titles.
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
            found = getattr(self, name).count(field)
            if found != times:
                raise ConfigError(
                    f"the {name} holds {field} {found} times; expected {'once' if times else 'none'}",
                    fix="as in: 'Liked before: {history}. One of these is liked next: {candidates}. It is', and open: "
                    "'Liked before: {history}. Liked next:'",
                )

    def prompt(self, history: Sequence[str], candidates: Sequence[str]) -> str:
        """The question, of titles."""
        # A title may itself hold a brace: nothing is formatted.
        names = sorted(("{history}", "{candidates}"), key=self.template.index)
        before, rest = self.template.split(names[0])
        between, after = rest.split(names[1])
        of = {"{history}": history, "{candidates}": candidates}
        first, second = (self.separator.join(of[name]) for name in names)
        return f"{before}{first}{between}{second}{after}"

    def open_prompt(self, history: Sequence[str]) -> str:
        """The question without a list."""
        before, after = self.open_template.split("{history}")
        return f"{before}{self.separator.join(history)}{after}"


def draw_negatives(group: PreferenceGroup, n: int, weights: Sequence[float], seed: int) -> tuple[int, ...]:
    """n of the candidates that are not preferred, by index; each next one in proportion to its weight among those left.

    Raises:
        ConfigError: the question offers fewer.
    """
    draw = random.Random(f"{seed}/{group.id}/negatives")
    others = _others(group, n)
    return tuple(in_random_order(others, [weights[k] for k in others], draw)[:n])


def hardest_negatives(group: PreferenceGroup, n: int, scores: Sequence[float]) -> tuple[int, ...]:
    """The n candidates of the highest scores that are not preferred, by index; errors as in `draw_negatives`."""
    return tuple(sorted(_others(group, n), key=lambda k: (-scores[k], k))[:n])


def _others(group: PreferenceGroup, n: int) -> list[int]:
    others = [k for k in range(len(group.candidates)) if k != group.preferred]
    if not 1 <= n <= len(others):
        raise ConfigError(
            f"{n} negatives of {len(others)} titles beside the target", fix=f"between 1 and {len(others)} negatives"
        )
    return others
