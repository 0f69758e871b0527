"""Log-probs and rankings of a whole catalogue, packed as a trie, for questions without a list of candidates."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from penchant.api import (
    AS_IS,
    Branches,
    FrozenModel,
    Ids,
    PreferenceGroup,
    Reading,
    TokenizedGroup,
    TreeBatch,
    TreeScorer,
    World,
    as_tensor,
    choose_scorer,
    common_length,
    pack_loss_mask,
    precision,
    read_held_out,
    score_groups,
)
from penchant.recipes.recommend.prompts import Wording

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trie:
    """The trie of the candidates' tokens; n nodes in depth-first order.

    Attributes:
        ids: [n] token id of each node.
        depths: [n] depth of each node; 0 for first tokens.
        parents: [n] parent node; -1 for first tokens.
        reach: [n] the node after the last descendant.
        paths: the nodes of each candidate, one array per candidate.
    """

    ids: Ids
    depths: Ids
    parents: Ids
    reach: Ids
    paths: tuple[Ids, ...]

    @classmethod
    def from_responses(cls, responses: Sequence[Ids]) -> Trie:
        """The trie of responses that have at least one token each."""
        words = [response.tolist() for response in responses]
        ids: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        reach: dict[int, int] = {}
        paths: dict[int, list[int]] = {}
        previous_tokens: list[int] = []
        path: list[int] = []
        # In lexicographic order a candidate shares with its predecessor all that it shares with any earlier one.
        for candidate in sorted(range(len(words)), key=words.__getitem__):
            tokens = words[candidate]
            shared = common_length(previous_tokens, tokens)
            reach.update((node, len(ids)) for node in path[shared:])
            new = range(len(ids), len(ids) + len(tokens) - shared)
            path = [*path[:shared], *new]
            ids += tokens[shared:]
            depths += range(shared, len(tokens))
            parents += [path[depth - 1] if depth else -1 for depth in range(shared, len(tokens))]
            paths[candidate], previous_tokens = path, tokens
        reach.update((node, len(ids)) for node in path)
        return cls(
            np.array(ids),
            np.array(depths),
            np.array(parents),
            np.array([reach[node] for node in range(len(ids))]),
            tuple(np.array(paths[candidate]) for candidate in range(len(words))),
        )


def pack_trie(group: TokenizedGroup) -> TreeBatch:
    """One group as a row in which candidates share the tokens of common beginnings; `trees.pack` shares none."""
    trie, p, k = Trie.from_responses(group.responses), len(group.prompt), len(group.responses)
    roots = np.flatnonzero(trie.depths == 0)
    sizes = np.diff([*roots, len(trie.ids)])
    length = p + len(trie.ids)
    return TreeBatch(
        input_ids=as_tensor(np.concatenate([group.prompt, trie.ids])),
        positions=as_tensor(np.concatenate([np.arange(p), p + trie.depths])),
        reach=as_tensor(np.concatenate([np.full(p, length), p + trie.reach])),
        branches=(Branches(p, tuple(sizes.tolist()), forked=True),),
        source=as_tensor(p + trie.parents),
        targets=as_tensor(trie.ids),
        paths=as_tensor(np.concatenate([path[mask] for path, mask in zip(trie.paths, group.masks, strict=True)])),
        lengths=torch.tensor(group.tokens),
        ends=as_tensor(p + np.array([path[-1] for path in trie.paths])),
        slots=torch.arange(k),
        shape=(1, k),
        loss_mask=pack_loss_mask([group]),
    )


def catalogue_log_probs(
    model: FrozenModel,
    groups: Iterable[TokenizedGroup],
    world: World,
    budget: int,
    dtype: str,
) -> Iterator[list[float]]:
    """Summed log-probs of each group's candidates, nats, one group after the other; nothing is cached.

    Equal to `score_groups` of the same groups but for rounding.

    Args:
        groups: read one at a time, so that the candidates of all questions need not be in memory together.
        budget: tokens in a micro-batch of a model that is run padded.
    """
    scorer = None
    for group in groups:
        if scorer is None:
            choice = choose_scorer(model.model, [group], dtype)
            for note in choice.notes:
                logger.info(note)
            scorer = choice.scorer.eval()
        if not isinstance(scorer, TreeScorer):
            yield score_groups(scorer, [group], world=world, budget=budget, dtype=dtype)[0]
            continue
        with torch.no_grad(), precision(world.device, dtype):
            yield scorer(pack_trie(group).to(world.device))[0].tolist()


def rank_catalogue(
    model: str, histories: Sequence[Sequence[str]], titles: Sequence[str], wording: Wording, reading: Reading = AS_IS
) -> Iterator[list[float]]:
    """The log-probs of all titles after every history, in nats, one list per history in the order of `titles`.

    Args:
        model: folder of a trained model.
        histories: the titles taken before, the oldest first, for every question.
        titles: the catalogue, every title once; at least two.
    """
    world = World.single()
    frozen = FrozenModel.load(model, world, reading.dtype, reading.chat_template, reading.rendering)
    answers = tuple(f" {title}" for title in titles)
    groups = (
        read_held_out(frozen, model, [PreferenceGroup(wording.open_prompt(history), answers, id=str(n))], reading)[0][0]
        for n, history in enumerate(histories)
    )
    return catalogue_log_probs(frozen, groups, world, reading.token_budget, reading.dtype)
