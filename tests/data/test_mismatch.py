"""Borrowed responses: from another prompt, marked as mismatched, and independent of the tokenizer."""

from __future__ import annotations

import numpy as np
import pytest

from penchant.data.groups import PreferenceGroup
from penchant.data.second_reading import add_mismatched
from penchant.data.tokenized import TokenizedGroup
from penchant.errors import DataError
from penchant.training.batches import group_tensors


def tokenized(prompts: list[str], k: int = 2, width: int = 3, **preferences: object) -> list[TokenizedGroup]:
    groups = []
    for number, prompt in enumerate(prompts):
        candidates = tuple(f"{prompt}-{number}-{i}" for i in range(k))
        responses = tuple(np.full(width, 100 * number + i) for i in range(k))
        group = PreferenceGroup(prompt, candidates, id=str(number), **preferences)
        groups.append(TokenizedGroup(np.arange(4), responses, group))
    return groups


def test_each_group_borrows_a_response_to_another_prompt():
    groups = tokenized(["a", "a", "b", "c", "c", "c"], preferred=0)
    for original, extended in zip(groups, add_mismatched(groups, seed=0, longest=100), strict=True):
        assert extended.group.mismatched == 2
        assert not extended.group.candidates[2].startswith(original.group.prompt)
        lender = int(extended.group.candidates[2].split("-")[1])
        chosen = int(extended.group.candidates[2].split("-")[2])
        assert extended.responses[2].tolist() == groups[lender].responses[chosen].tolist()
        assert extended.responses[:2] == original.responses
        assert extended.group.pairs == original.group.pairs == ((0, 1),)


def test_the_borrowed_response_does_not_depend_on_the_tokenizer():
    prompts = ["a", "b", "c", "d", "a", "b"]
    one = add_mismatched(tokenized(prompts, width=3), seed=5, longest=100)
    two = add_mismatched(tokenized(prompts, width=7), seed=5, longest=100)
    assert [g.group.candidates for g in one] == [g.group.candidates for g in two]
    other = add_mismatched(tokenized(prompts), seed=6, longest=100)
    assert [g.group.candidates for g in one] != [g.group.candidates for g in other]


def test_a_borrowed_response_is_cut_to_the_limit():
    groups = add_mismatched(tokenized(["a", "b"], width=9), seed=0, longest=6)
    assert [len(group.responses[2]) for group in groups] == [2, 2]
    assert [len(group.responses[0]) for group in groups] == [9, 9]


def test_a_mismatched_candidate_has_no_preferences():
    for preferences in ({"labels": (True, False)}, {"scores": (2.0, 1.0)}, {"ranks": (1, 2)}):
        groups = add_mismatched(tokenized(["a", "b"], **preferences), seed=0, longest=100)
        facts = group_tensors([group.group for group in groups], [[1] * len(group.responses) for group in groups])
        assert facts.mask.tolist() == [[True, True, False]] * 2
        assert facts.mismatched.tolist() == [[False, False, True]] * 2
        assert facts.labels.tolist() == [[1, -1, 0]] * 2
        assert facts.better.sum((1, 2)).tolist() == [1, 1]
        assert not facts.better[:, 2].any()
        assert not facts.better[:, :, 2].any()
        assert not facts.scored[:, 2].any()


def test_data_with_one_prompt_is_an_error():
    with pytest.raises(DataError, match="same prompt"):
        add_mismatched(tokenized(["a", "a"]), seed=0, longest=100)
