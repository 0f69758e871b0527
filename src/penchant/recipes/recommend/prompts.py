"""Questions as text: a history and a list of titles, to be answered with one of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError


@dataclass(frozen=True)
class Wording:
    """How a question is put.

    Attributes:
        template: text with ``{history}`` and ``{candidates}``, each replaced by titles.
        separator: between titles.
    """

    template: str = "Liked before, oldest first: {history}\nOne of these is liked next: {candidates}\nIt is"
    separator: str = "; "

    def __post_init__(self) -> None:
        for field in ("{history}", "{candidates}"):
            if self.template.count(field) != 1:
                raise ConfigError(
                    f"the template holds {field} {self.template.count(field)} times; expected once",
                    fix="as in: 'Liked before: {history}. One of these is liked next: {candidates}. It is'",
                )

    def prompt(self, history: Sequence[str], candidates: Sequence[str]) -> str:
        """The question, of titles."""
        before, between, after = self._around()
        first, second = (self.separator.join(titles) for titles in self._in_order(history, candidates))
        return f"{before}{first}{between}{second}{after}"

    def _around(self) -> tuple[str, str, str]:
        # A title may itself hold a brace: nothing is formatted.
        names = sorted(("{history}", "{candidates}"), key=self.template.index)
        before, rest = self.template.split(names[0])
        between, after = rest.split(names[1])
        return before, between, after

    def _in_order(self, history: Sequence[str], candidates: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        first = self.template.index("{history}") < self.template.index("{candidates}")
        return (history, candidates) if first else (candidates, history)


def pick_negatives(group: PreferenceGroup, n: int, scores: Sequence[float] | None, seed: int) -> tuple[int, ...]:
    """n of the candidates that are not preferred, by index.

    Args:
        scores: of the candidates, where the highest are to be taken (hard negatives); None draws uniformly.

    Raises:
        ConfigError: the question offers fewer.
    """
    others = [k for k in range(len(group.candidates)) if k != group.preferred]
    if not 1 <= n <= len(others):
        raise ConfigError(
            f"{n} negatives of {len(others)} titles beside the target", fix=f"between 1 and {len(others)} negatives"
        )
    if scores is not None:
        return tuple(sorted(others, key=lambda k: (-scores[k], k))[:n])
    return tuple(random.Random(f"{seed}/{group.id}/negatives").sample(others, n))
