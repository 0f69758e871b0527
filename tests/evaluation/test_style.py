"""What words alone know of a preference."""

from __future__ import annotations

import random

import pytest

from penchant.cli.main import run
from penchant.data.groups import PreferenceGroup
from penchant.data.writing import write_groups
from penchant.errors import DataError
from penchant.evaluation.style import style_leak

WORDS = ["red", "blue", "green", "old", "new", "big", "small", "good", "calm", "loud"]


def groups_with_mark(mark: str, n: int = 300, seed: int = 0) -> list[PreferenceGroup]:
    """Answers of random words; the better one ends with a mark."""
    draw = random.Random(seed)
    text = lambda: " ".join(draw.choices(WORDS, k=8))  # noqa: E731
    return [PreferenceGroup(f"p{i // 2}", (text(), f"{text()}{mark}"), preferred=1, id=str(i)) for i in range(n)]


def test_a_phrase_gives_it_away():
    leak = style_leak(groups_with_mark(" I understand"))
    assert leak.words.value > 0.99
    assert {"understand", "i"} <= set(leak.of_better)
    assert leak.longer.value == 1
    assert (leak.pairs, leak.prompts) == (300, 150)


def test_nothing_gives_nothing_away():
    values = [style_leak(groups_with_mark("", seed=seed)).words.value for seed in range(4)]
    assert 0.43 < sum(values) / 4 < 0.57
    assert style_leak(groups_with_mark("")).longer.value == 0.5


def test_of_the_prompt_nothing_is_carried_over():
    """Each prompt's better answers share a word of their own: on other prompts it says nothing."""
    draw = random.Random(0)
    groups = []
    for i in range(200):
        prompt_word = f"word{i // 4}"
        answer = " ".join(draw.choices(WORDS, k=6))
        groups.append(
            PreferenceGroup(
                f"p{i // 4}", (f"{answer} {prompt_word}", f"{answer} other{i // 4}"), preferred=0, id=str(i)
            )
        )
    assert style_leak(groups).words.value == 0.5


def test_too_few():
    with pytest.raises(DataError, match="4 prompts with pairs; 5 are needed"):
        style_leak(groups_with_mark("", n=8))
    with pytest.raises(DataError, match="no word occurs twice"):
        style_leak([PreferenceGroup(f"p{n}", ("", " "), preferred=0, id=str(n)) for n in range(9)])


def test_from_the_command_line(tmp_path, capsys):
    file = tmp_path / "groups.jsonl"
    write_groups(groups_with_mark(" I understand"), file)
    assert run(["data", "audit", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "understand" in printed
    assert "1.000" in printed
