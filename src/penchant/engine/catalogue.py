"""Log-probs of a whole catalogue after a prompt: many short candidates, as a trie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from penchant.data.tokenized import TokenizedGroup
from penchant.data.tries import pack_trie
from penchant.engine.distribution import World
from penchant.engine.frozen import FrozenModel
from penchant.engine.scoring import choose_scorer, precision, score_groups
from penchant.engine.tree import TreeScorer


def catalogue_log_probs(
    model: FrozenModel,
    groups: Iterable[TokenizedGroup],
    world: World,
    budget: int,
    dtype: str,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[list[float]]:
    """Summed log-probs of each group's candidates, nats, one group after the other; nothing is cached.

    Equal to `score_groups` of the same groups but for rounding.

    Args:
        groups: read one at a time, so that the candidates of all questions need not be in memory together.
        budget: tokens in a micro-batch of a model that is run padded.
        tell: called with notes on a padded model and on rounding in bfloat16.
    """
    scorer = None
    for group in groups:
        if scorer is None:
            choice = choose_scorer(model.model, [group], dtype)
            for note in choice.notes:
                tell(note)
            scorer = choice.scorer.eval()
        if not isinstance(scorer, TreeScorer):
            yield score_groups(scorer, [group], world=world, budget=budget, dtype=dtype)[0]
            continue
        with torch.no_grad(), precision(world.device, dtype):
            yield scorer(pack_trie(group).to(world.device))[0].tolist()
