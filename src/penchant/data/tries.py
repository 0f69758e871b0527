"""Packing of many candidates with common beginnings: shared tokens are computed once, as the prompt is.

The candidates form a trie, as the titles of a catalogue do: its tokens are in the row in depth-first order, and a
candidate is a path from the prompt downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from penchant.data.prefixes import common_length
from penchant.data.tokenized import Ids, TokenizedGroup
from penchant.data.trees import Branches, TreeBatch, as_tensor, pack_loss_mask


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
