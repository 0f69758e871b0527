"""Rankings of a whole catalogue for questions without a list of candidates."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from penchant.data.groups import PreferenceGroup
from penchant.engine.catalogue import catalogue_log_probs
from penchant.engine.distribution import World, local_device
from penchant.engine.frozen import FrozenModel
from penchant.evaluation.held_out import AS_IS, Reading, read_held_out
from penchant.recipes.recommend.prompts import Wording


def rank_catalogue(
    model: str, histories: Sequence[Sequence[str]], titles: Sequence[str], wording: Wording, reading: Reading = AS_IS
) -> Iterator[list[float]]:
    """The log-probs of all titles after every history, in nats, one list per history in the order of `titles`.

    Args:
        model: folder of a trained model.
        histories: the titles taken before, the oldest first, for every question.
        titles: the catalogue, every title once; at least two.
    """
    world = World(0, 1, local_device())
    frozen = FrozenModel.load(model, world, reading.dtype, reading.chat_template, reading.rendering)
    answers = tuple(f" {title}" for title in titles)
    groups = (
        read_held_out(frozen, model, [PreferenceGroup(wording.open_prompt(history), answers, id=str(n))], reading)[0]
        for n, history in enumerate(histories)
    )
    return catalogue_log_probs(frozen, groups, world, reading.token_budget, reading.dtype, warnings.warn)
