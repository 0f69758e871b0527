"""Scores beside the data: preferences stay people's, and an interrupted pass goes on."""

from __future__ import annotations

import json

import pytest

from penchant.data.groups import PreferenceGroup
from penchant.data.reading import read_groups
from penchant.data.writing import write_groups
from penchant.errors import DataError
from penchant.evaluation import score_file as module
from penchant.evaluation.score_file import score_file, with_scores


class Counting:
    """A reward that counts what it is asked, and may fail."""

    name = "counting"

    def __init__(self, fail_after: int | None = None) -> None:
        self.prompts: list[str] = []
        self.fail_after = fail_after

    def __call__(self, prompts, responses):
        if self.fail_after is not None and len(self.prompts) >= self.fail_after:
            raise KeyboardInterrupt
        self.prompts += prompts
        return [[float(len(r)) for r in candidates] for candidates in responses]


def groups(n: int = 6) -> list[PreferenceGroup]:
    return [PreferenceGroup(f"prompt {i}", ("a" * (i + 1), "bbb"), preferred=0, id=str(i)) for i in range(n)]


@pytest.mark.parametrize(
    ("preference", "pairs"),
    [
        ({"preferred": 1}, ((1, 0),)),
        ({"ranks": (2, 1)}, ((1, 0),)),
        ({"scores": (1.0, 2.0)}, ((1, 0),)),
        ({"comparisons": ((1, 0),)}, ((1, 0),)),
        ({}, ((0, 1),)),  # nobody said: the scores do
    ],
)
def test_preferences_stay_and_survive_the_file(tmp_path, preference, pairs):
    group = PreferenceGroup("prompt", ("longer text", "short"), **preference)
    [scored] = with_scores([group], Counting())
    assert scored.scores == (11.0, 5.0)
    assert scored.pairs == pairs
    write_groups([scored], tmp_path / "scored.jsonl")
    [back] = read_groups(str(tmp_path / "scored.jsonl")).groups
    assert back.scores == (11.0, 5.0)
    assert back.pairs == pairs


def test_an_interrupted_pass_goes_on(monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 2)
    interrupted = Counting(fail_after=4)
    with pytest.raises(KeyboardInterrupt):
        with_scores(groups(), interrupted)
    assert interrupted.prompts == ["prompt 0", "prompt 1", "prompt 2", "prompt 3"]
    second = Counting()
    scored = with_scores(groups(), second)
    assert second.prompts == ["prompt 4", "prompt 5"]
    assert [g.scores for g in scored] == [(float(i + 1), 3.0) for i in range(6)]
    assert with_scores(groups(), Counting(fail_after=0)) == scored


def test_what_it_says_of_the_datas_own_pairs(tmp_path):
    """The first candidate is preferred; it is longer than three letters in groups 3, 4 and 5, as long in group 2."""
    result = score_file(groups(), Counting(), tmp_path / "out.jsonl")
    assert result.accuracy.value == pytest.approx(3 / 6)
    assert result.accuracy.n == 6
    assert result.candidates == 12
    assert len(read_groups(str(tmp_path / "out.jsonl")).groups) == 6


def test_an_output_that_is_there(tmp_path):
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(DataError, match="there already"):
        score_file(groups(), Counting(), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "mine"


class TestVerb:
    def test_writes_and_prints_one_document(self, tmp_path, tiny_pairs, run_penchant):
        (tmp_path / "mine.py").write_text("def f(prompt, responses):\n    return [r.count('cat') for r in responses]\n")
        out = tmp_path / "scored.jsonl"
        process = run_penchant(
            "score", tiny_pairs, "--function", f"{tmp_path / 'mine.py'}:f", "--output", out, "--json"
        )
        assert process.returncode == 0, process.stderr
        document = json.loads(process.stdout)
        assert document["groups"] == 48
        assert document["accuracy"]["value"] > 0.9
        assert len(read_groups(str(out)).groups) == 48

    def test_no_reward_is_the_users_mistake(self, tmp_path, tiny_pairs, run_penchant):
        process = run_penchant("score", tiny_pairs, "--output", tmp_path / "scored.jsonl")
        assert process.returncode == 2
        assert "give one of: --model" in process.stderr
        assert "Traceback" not in process.stderr
