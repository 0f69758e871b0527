from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.data.groups import Message, PreferenceGroup
from penchant.data.reading import read_groups
from penchant.data.splitting import split_by_prompt
from penchant.errors import DataError


def groups_of(prompts: list[str]) -> list[PreferenceGroup]:
    return [PreferenceGroup(prompt, ("a", "b"), preferred=0, id=str(n)) for n, prompt in enumerate(prompts)]


@given(st.lists(st.text(max_size=3), min_size=2), st.floats(0.01, 0.99), st.integers(0, 5), st.randoms())
def test_the_groups_of_a_prompt_stay_together_in_any_order(
    prompts: list[str], share: float, seed: int, draw: random.Random
) -> None:
    groups = groups_of(prompts)
    distinct = len(set(prompts))
    count = int(share * distinct + 0.5)
    if not 0 < count < distinct:
        with pytest.raises(DataError, match="leaves one side empty"):
            split_by_prompt(groups, held_out=share, seed=seed)
        return
    train, out = split_by_prompt(groups, held_out=share, seed=seed)
    assert sorted(map(id, train + out)) == sorted(map(id, groups))
    assert [int(group.id) for group in train] == sorted(int(group.id) for group in train)
    assert len({group.prompt for group in out}) == count
    assert not {group.prompt for group in out} & {group.prompt for group in train}
    shuffled = draw.sample(groups, len(groups))
    assert {group.prompt for group in split_by_prompt(shuffled, held_out=share, seed=seed)[1]} == {
        g.prompt for g in out
    }


def test_the_seed_changes_the_split() -> None:
    groups = groups_of([f"p{n}" for n in range(20)])
    chosen = [[group.prompt for group in split_by_prompt(groups, held_out=0.25, seed=seed)[1]] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0]) == 5
    # These values are fixed, because a split must not change between versions or machines.
    assert chosen[0] == FIRST


FIRST = ["p0", "p1", "p2", "p4", "p12"]


def test_prompts_of_messages_differ_by_their_text() -> None:
    turns = [(Message(role="user", content=f"{n % 4}"),) for n in range(8)]
    groups = [PreferenceGroup(turn, ("a", "b"), preferred=0) for turn in turns]
    train, out = split_by_prompt(groups, held_out=0.5, seed=0)
    assert len(train) == len(out) == 4


@pytest.mark.parametrize(
    ("prompts", "share", "fix"),
    [
        (["a", "a"], 0.5, "add groups with other prompts"),
        (["a", "b", "c", "d"], 0.1, "hold out between 0.25 and 0.75"),
        (["a", "b", "c", "d"], 0.9, "hold out between 0.25 and 0.75"),
        (["a", "b"], 0.0, "hold out between 0.5 and 0.5"),
        (["a", "b"], 1.0, "hold out between 0.5 and 0.5"),
        (["a", "b"], float("nan"), "hold out between 0.5 and 0.5"),
    ],
)
def test_a_split_with_an_empty_side_is_an_error(prompts: list[str], share: float, fix: str) -> None:
    with pytest.raises(DataError) as caught:
        split_by_prompt(groups_of(prompts), held_out=share, seed=0)
    assert caught.value.fix == fix


def test_real_pairs_that_share_prompts(shared_data: Path) -> None:
    groups = read_groups(shared_data / "pandalm" / "pairs.jsonl").groups
    train, out = split_by_prompt(groups, held_out=0.25, seed=3)
    assert len({group.prompt for group in train}) == 69
    assert len({group.prompt for group in out}) == 23
    assert len(train) + len(out) == 497


def test_prompts_of_one_topic_stay_together() -> None:
    groups = groups_of([f"{letter}{n}" for letter in "abcdef" for n in range(3)])
    topics = {group.prompt: group.prompt[0] for group in groups if group.prompt[0] != "f"}
    train, out = split_by_prompt(groups, held_out=0.5, seed=1, topics=topics)
    sides = [{group.prompt[0] for group in side if group.prompt[0] != "f"} for side in (train, out)]
    assert sides[0].isdisjoint(sides[1])
    # Five topics and three prompts without a topic make eight keys; half of them are held out.
    assert len({topics.get(group.prompt, group.prompt) for group in out}) == 4
