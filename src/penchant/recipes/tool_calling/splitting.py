"""Questions in parts that share neither a function's name nor a text."""

from __future__ import annotations

from collections.abc import Sequence

from penchant.data.groups import PreferenceGroup
from penchant.data.splitting import split_by_prompt
from penchant.evaluation.tool_calls.questions import ToolQuestion


def families(questions: Sequence[ToolQuestion]) -> list[str]:
    """Each question's family; those that share a name on offer or a text, also through others, are in one.

    A family is called after the first of its names in the alphabet, or its text where it has none: by what is in it
    alone, so that questions that are added leave the names of families that they do not touch.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for question in questions:
        own, *others = _keys(question)
        for other in others:
            # The smaller is the root, and so the name.
            first, second = sorted((root(own), root(other)))
            parents[second] = first
    return [root(_keys(question)[0]) for question in questions]


def _keys(question: ToolQuestion) -> list[str]:
    names = sorted({function.name.lower() for function in question.functions})
    return [*(f"name {name}" for name in names), f"text {' '.join(question.text.lower().split())}"]


def split(questions: Sequence[ToolQuestion], share: float, seed: int) -> tuple[list[ToolQuestion], list[ToolQuestion]]:
    """Training and held-out questions, in the given order; whole families, so many of them held out.

    Raises:
        DataError: a side would be left empty.
    """
    # Families are split as prompts are: those with the smallest hashes are held out.
    groups = [PreferenceGroup(family, ("",), id=str(n)) for n, family in enumerate(families(questions))]
    sides = split_by_prompt(groups, held_out=share, seed=seed)
    train, held_out = ([questions[int(group.id)] for group in side] for side in sides)
    return train, held_out
