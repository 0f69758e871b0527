"""A split of questions into parts that share neither a function's name nor a text."""

from __future__ import annotations

from collections.abc import Sequence

from penchant.data.groups import PreferenceGroup
from penchant.data.splitting import split_by_prompt
from penchant.evaluation.tool_calls.questions import ToolQuestion


def families(questions: Sequence[ToolQuestion]) -> list[str]:
    """The name of every question's family: questions that share a function's name or a text are in one family.

    So are questions that are only connected through others. A family's name is the smallest of its function names, or
    its text if it has no function. It depends on the family alone, so that added questions do not rename families to
    which they do not belong.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for question in questions:
        first_key, *other_keys = _keys(question)
        for other in other_keys:
            # The smaller key is the root, which names the family.
            smaller, larger = sorted((root(first_key), root(other)))
            parents[larger] = smaller
    return [root(_keys(question)[0]) for question in questions]


def _keys(question: ToolQuestion) -> list[str]:
    names = sorted({function.name.lower() for function in question.functions})
    return [*(f"name {name}" for name in names), f"text {' '.join(question.text.lower().split())}"]


def split(questions: Sequence[ToolQuestion], share: float, seed: int) -> tuple[list[ToolQuestion], list[ToolQuestion]]:
    """Training and held-out questions in their order, with whole families held out.

    Args:
        share: the share of families to hold out.

    Raises:
        DataError: a side would be empty.
    """
    # Families are split as prompts are: those with the smallest hashes are held out.
    groups = [PreferenceGroup(family, ("",), id=str(n)) for n, family in enumerate(families(questions))]
    sides = split_by_prompt(groups, held_out=share, seed=seed)
    train, held_out = ([questions[int(group.id)] for group in side] for side in sides)
    return train, held_out
