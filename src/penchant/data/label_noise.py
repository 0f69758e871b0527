"""Label noise for experiments: a share of the groups learns the opposite of what its data prefers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from penchant.data.groups import PreferenceGroup
from penchant.errors import DataError


def add_label_noise(groups: Sequence[PreferenceGroup], share: float, seed: int) -> tuple[list[PreferenceGroup], int]:
    """The groups in their order, a share of them with the opposite label, and the number of these.

    A pair's two candidates exchange all that is known of their worth, and a single response's label is negated. With
    the same seed, the groups of a smaller share are among those of a larger one.

    Args:
        groups: pairs, or single responses with a label.
        share: share of the groups, between 0 and 1; rounded to whole groups, halves up.
        seed: seed of the choice.

    Raises:
        DataError: a group has neither two candidates nor a label to negate.
    """
    irreversible = [group for group in groups if not _is_reversible(group)]
    if share and irreversible:
        first = irreversible[0]
        raise DataError(
            f"data.label_noise is {share} and reverses pairs and yes/no labels; {len(irreversible)} of {len(groups)} "
            f"groups are neither (first: group {first.id}, {len(first.candidates)} candidates)",
            fix="data.label_noise=0, or use data with a chosen and a rejected response",
        )
    order = list(range(len(groups)))
    random.Random(f"{seed}/label noise").shuffle(order)
    chosen = set(order[: int(share * len(groups) + 0.5)])
    noisy = [_reverse(group) if i in chosen else group for i, group in enumerate(groups)]
    return noisy, len(chosen)


def _is_reversible(group: PreferenceGroup) -> bool:
    return len(group.candidates) == 2 or (len(group.candidates) == 1 and group.labels is not None)


def _reverse(group: PreferenceGroup) -> PreferenceGroup:
    if len(group.candidates) == 1:
        assert group.labels is not None
        return replace(group, labels=(not group.labels[0],))
    comparisons, scores, ranks, labels = group.comparisons, group.scores, group.ranks, group.labels
    return replace(
        group,
        comparisons=None if comparisons is None else tuple((worse, better) for better, worse in comparisons),
        scores=None if scores is None else scores[::-1],
        ranks=None if ranks is None else ranks[::-1],
        preferred=None if group.preferred is None else 1 - group.preferred,
        labels=None if labels is None else labels[::-1],
    )
