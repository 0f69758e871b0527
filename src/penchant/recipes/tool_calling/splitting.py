"""Questions in parts that share neither a function's name nor a text."""

from __future__ import annotations

from collections.abc import Sequence

from penchant.data.groups import PreferenceGroup
from penchant.data.splitting import split_by_prompt
from penchant.evaluation.tool_calls.questions import ToolQuestion


def families(questions: Sequence[ToolQuestion]) -> list[int]:
    """A number for each question; those that share a name on offer or a text, also through others, share it."""
    parents: dict[object, object] = {}

    def root(key: object) -> object:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for number, question in enumerate(questions):
        names = {function.name.lower() for function in question.functions}
        for key in [*(("name", name) for name in sorted(names)), ("text", " ".join(question.text.lower().split()))]:
            parents[root(key)] = root(number)
    roots = [root(number) for number in range(len(questions))]
    numbers = {key: n for n, key in enumerate(dict.fromkeys(roots))}
    return [numbers[key] for key in roots]


def split(questions: Sequence[ToolQuestion], share: float, seed: int) -> tuple[list[ToolQuestion], list[ToolQuestion]]:
    """Training and held-out questions; whole families, so many of them held out.

    Raises:
        DataError: a side would be left empty.
    """
    topics = [str(number) for number in families(questions)]
    # Families are split as prompts are: by hash, whatever the order.
    groups = [PreferenceGroup(topic, ("",), id=str(n)) for n, topic in enumerate(topics)]
    sides = split_by_prompt(groups, held_out=share, seed=seed)
    train, held_out = ([questions[int(group.id)] for group in side] for side in sides)
    return train, held_out
