"""Questions as text: a history and a list of titles, to be answered with one of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError
from penchant.recipes.recommend.histories import Question


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


def as_group(
    question: Question, offered: Sequence[str], titles: Mapping[str, str], wording: Wording, negatives: Sequence[str]
) -> PreferenceGroup:
    """The question with its target as the preferred candidate, and these items beside it.

    Args:
        offered: items the prompt lists.
        negatives: items that are not preferred, of those offered; none for supervised training.
    """
    prompt = wording.prompt([titles[item] for item in question.history], [titles[item] for item in offered])
    answers = tuple(f" {titles[item]}" for item in (question.target, *negatives))
    return PreferenceGroup(prompt, answers, preferred=0 if negatives else None, id=question.id)


def pick_negatives(
    question: Question, offered: Sequence[str], n: int, scores: Mapping[str, float] | None, seed: int
) -> tuple[str, ...]:
    """n of the offered items that were not taken.

    Args:
        scores: of the items, where the highest are to be taken (hard negatives); None draws uniformly.

    Raises:
        ConfigError: the question offers fewer.
    """
    others = [item for item in offered if item != question.target]
    if not 1 <= n <= len(others):
        raise ConfigError(
            f"{n} negatives of {len(others)} titles beside the target", fix=f"between 1 and {len(others)} negatives"
        )
    if scores is not None:
        return tuple(sorted(others, key=lambda item: (-scores[item], item))[:n])
    return tuple(random.Random(f"{seed}/{question.id}/negatives").sample(others, n))
