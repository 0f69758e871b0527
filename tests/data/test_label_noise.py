"""Label noise: how many labels are reversed, which, and what a reversed label is."""

from __future__ import annotations

import pytest

from penchant.data.groups import PreferenceGroup
from penchant.data.label_noise import add_label_noise
from penchant.errors import DataError


def pairs(count: int) -> list[PreferenceGroup]:
    return [PreferenceGroup("p", ("a", "b"), preferred=0, id=str(i)) for i in range(count)]


def reversed_ids(share: float, seed: int = 0, count: int = 50) -> set[str]:
    noisy, reversed_count = add_label_noise(pairs(count), share, seed)
    assert [group.id for group in noisy] == [str(i) for i in range(count)]
    ids = {group.id for group in noisy if group.pairs == ((1, 0),)}
    assert len(ids) == reversed_count
    return ids


@pytest.mark.parametrize(("share", "count", "expected"), [(0.0, 50, 0), (0.2, 50, 10), (0.5, 3, 2), (1.0, 7, 7)])
def test_the_share_is_exact_with_halves_rounded_up(share, count, expected):
    assert len(reversed_ids(share, count=count)) == expected


def test_the_seed_decides_the_groups_and_a_larger_share_contains_a_smaller_one():
    assert reversed_ids(0.2) == reversed_ids(0.2)
    assert reversed_ids(0.2) < reversed_ids(0.4)
    assert reversed_ids(0.4, seed=1) != reversed_ids(0.4, seed=0)
    # Of 50 groups, 20 are drawn twice: 8 are expected in both draws, with a standard deviation of about 1.7.
    assert 2 <= len(reversed_ids(0.4, seed=1) & reversed_ids(0.4, seed=0)) <= 14


@pytest.mark.parametrize(
    ("worth", "reversed_worth"),
    [
        ({"preferred": 1}, {"preferred": 0}),
        ({"scores": (3.0, 1.0)}, {"scores": (1.0, 3.0)}),
        ({"ranks": (2, 1)}, {"ranks": (1, 2)}),
        ({"comparisons": ((0, 1),)}, {"comparisons": ((1, 0),)}),
        ({"labels": (True, False)}, {"labels": (False, True)}),
        ({"comparisons": ((0, 1),), "scores": (3.0, 1.0)}, {"comparisons": ((1, 0),), "scores": (1.0, 3.0)}),
    ],
)
def test_a_pair_exchanges_all_that_is_known_of_its_candidates(worth, reversed_worth):
    [noisy], _ = add_label_noise([PreferenceGroup("p", ("a", "b"), weight=2.0, **worth)], 1.0, 0)
    assert noisy == PreferenceGroup("p", ("a", "b"), weight=2.0, **reversed_worth)


def test_a_single_response_gets_the_other_label():
    [noisy], _ = add_label_noise([PreferenceGroup("p", ("a",), labels=(True,))], 1.0, 0)
    assert noisy.labels == (False,)


@pytest.mark.parametrize("group", [PreferenceGroup("p", ("a", "b", "c"), preferred=0), PreferenceGroup("p", ("a",))])
def test_groups_without_an_opposite_are_refused_by_id(group):
    with pytest.raises(DataError, match=r"1 of 4 groups are neither \(first: group 0") as error:
        add_label_noise([group, *pairs(3)], 0.2, 0)
    assert "data.label_noise=0" in str(error.value)
    assert add_label_noise([group], 0.0, 0) == ([group], 0)
