"""Tries, worked out by hand, and by their invariants."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import Branches
from penchant.recipes.recommend.catalogue import Trie, pack_trie

WORDS = st.lists(st.integers(0, 3), min_size=1, max_size=6)


def arrays(responses):
    return tuple(map(np.array, responses))


def test_pack_by_hand():
    #        8
    #   5 -- 6 -- 7        (the prompt is 1 2)
    #   9
    group = TokenizedGroup(
        np.array([1, 2]), arrays([[5, 6, 8], [9], [5, 6, 7], [5, 6]]), PreferenceGroup("x", ("y",) * 4)
    )
    batch = pack_trie(group)
    assert batch.input_ids.tolist() == [1, 2, 5, 6, 7, 8, 9]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 4, 2]
    assert batch.reach.tolist() == [7, 7, 6, 6, 5, 6, 7]
    assert batch.branches == (Branches(2, (4, 1), forked=True),)
    assert batch.source.tolist() == [1, 2, 3, 3, 1]
    assert batch.targets.tolist() == [5, 6, 7, 8, 9]
    assert batch.paths.tolist() == [0, 1, 3, 4, 0, 1, 2, 0, 1]
    assert batch.lengths.tolist() == [3, 1, 3, 2]
    assert batch.ends.tolist() == [5, 6, 4, 3]
    assert batch.slots.tolist() == [0, 1, 2, 3]
    assert batch.shape == (1, 4)


@given(st.lists(WORDS, min_size=1, max_size=30))
def test_each_candidate_is_a_path_and_no_node_is_repeated(responses):
    trie = Trie.from_responses(arrays(responses))
    for response, path in zip(responses, trie.paths, strict=True):
        assert trie.ids[path].tolist() == response
        assert trie.parents[path].tolist() == [-1, *path[:-1]]
        assert trie.depths[path].tolist() == list(range(len(response)))
    beginnings = {tuple(response[:n]) for response in responses for n in range(1, len(response) + 1)}
    assert len(trie.ids) == len(beginnings)
    for node in range(len(trie.ids)):
        descendants = {other for path in trie.paths for other in path if node in path and other >= node}
        assert descendants == set(range(node, trie.reach[node]))
