"""Counts of pairs without a list of them: equal to the counts of the list, in memory that does not grow with them."""

from __future__ import annotations

import random
import tracemalloc
from collections import defaultdict

import pytest

from penchant.data.checks import check_groups
from penchant.data.groups import PreferenceGroup

WORDS = ("a", "A", "b", " c", "d e", "d  e", "ff", "g")


def random_groups(seed: int) -> list[PreferenceGroup]:
    draw = random.Random(seed)
    groups = []
    for number in range(draw.randint(1, 12)):
        k = draw.randint(1, 40 if seed % 3 == 0 else 5)
        candidates = tuple(draw.choice(WORDS) * draw.randint(1, 3) for _ in range(k))
        facts = {
            "comparisons": tuple((i, i + 1) for i in range(k - 1) if draw.random() < 0.5),
            "scores": tuple(float(draw.randint(0, 3)) for _ in range(k)),
            "ranks": tuple(draw.randint(1, 3) for _ in range(k)),
            "preferred": draw.randrange(k),
            "labels": tuple(draw.random() < 0.5 for _ in range(k)),
            "id": str(number),
        }
        name = draw.choice(sorted(facts))
        groups.append(PreferenceGroup(draw.choice(["p", "q", "rr"]), candidates, **{name: facts[name]}))
    return groups


@pytest.mark.parametrize("seed", range(60))
def test_counts_equal_those_of_all_pairs_listed(seed):
    groups = random_groups(seed)
    pairs = [(g.prompt, g.candidates[i], g.candidates[j]) for g in groups for i, j in g.pairs]
    distinct = {pair for pair in pairs if pair[1] != pair[2]}
    contradicted = {frozenset(pair[1:]) | {pair[0]} for pair in distinct if (pair[0], pair[2], pair[1]) in distinct}
    contradictory = sum((prompt, worse, better) in distinct for prompt, better, worse in distinct) // 2
    couples: defaultdict[bool, int] = defaultdict(int)
    similar = 0
    for group in groups:
        preferred = {frozenset(pair) for pair in group.pairs}
        for i in range(len(group.candidates)):
            for j in range(i):
                first_text, second_text = (" ".join(group.candidates[index].split()).casefold() for index in (i, j))
                similar += first_text == second_text and group.candidates[i] != group.candidates[j]
                if group.candidates[i] == group.candidates[j]:
                    couples[frozenset((i, j)) in preferred] += 1
    report = check_groups(groups)
    assert report.counts.pairs == len(pairs)
    assert report.counts.without_pairs == sum(not group.pairs for group in groups)
    assert report.checks["contradictory_pairs"].count == contradictory == len(contradicted)
    assert report.checks["contradictory_pairs"].of == len(distinct) - contradictory
    assert report.checks["repeated_pairs"].count == len(pairs) - len(set(pairs))
    assert report.checks["similar_candidates"].count == similar
    assert report.checks["identical_in_a_pair"].count == couples[True]
    assert report.checks["identical_without_preference"].count == couples[False]
    if pairs:
        longer = [len(better) > len(worse) for _, better, worse in pairs]
        assert report.length_bias.longer.value == pytest.approx(sum(longer) / len(pairs), abs=1e-12)
        equal = [len(better) == len(worse) for _, better, worse in pairs]
        assert report.length_bias.equal == pytest.approx(sum(equal) / len(pairs), abs=1e-12)
        assert report.length_bias.longer.n == len(pairs)


def test_a_thousand_candidates_fit_into_little_memory():
    """A list of the pairs of one such group would take 200 MB."""
    draw = random.Random(0)
    groups = [
        PreferenceGroup(
            f"p{n}", tuple(f"{n} {i}" for i in range(1000)), scores=tuple(draw.random() for _ in range(1000))
        )
        for n in range(3)
    ]
    tracemalloc.start()
    report = check_groups(groups)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.counts.pairs == 3 * 1000 * 999 // 2
    assert peak < 40e6
