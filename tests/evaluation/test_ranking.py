"""Candidates in order."""

from __future__ import annotations

import json

import pytest
import torch

from penchant.data.groups import PreferenceGroup
from penchant.engine.distributed import World
from penchant.errors import ModelError
from penchant.evaluation.held_out import score
from penchant.evaluation.ranking import rank, rank_by_reward

ALONE = World(0, 1, torch.device("cpu"))
GROUPS = [
    PreferenceGroup("the old cat", (" sees a dog", " runs", " likes the small house"), scores=(1, 2, 3), id="a"),
    PreferenceGroup("it runs", (" to the river", " to small dog"), preferred=1, id="b"),
]


class Letters:
    name = "letters"

    def __call__(self, prompts, responses):
        return [[float(len(r)) for r in candidates] for candidates in responses]


def test_order_and_agreement_by_hand():
    """By letters: 11, 5, 22 and 13, 13; of the first group's pairs (1>0, 2>0, 2>1) two are right, the tie is wrong."""
    ranking = rank_by_reward(GROUPS, Letters())
    assert [(line["id"], line["order"]) for line in ranking.lines()] == [("a", [2, 0, 1]), ("b", [0, 1])]
    assert ranking.accuracy.value == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("by", ["log_prob", "mean_log_prob"])
def test_by_log_prob(tiny_model, by):
    ranking = rank(str(tiny_model), GROUPS, ALONE, by=by)
    for scored, group in zip(score(str(tiny_model), GROUPS, ALONE), ranking.groups, strict=True):
        expected = [
            p / (n if by == "mean_log_prob" else 1) for p, n in zip(scored.log_probs, scored.tokens, strict=True)
        ]
        assert group.scores == pytest.approx(expected)


def test_by_head_changes_nothing_of_the_model(headed):
    log_probs = [scored.log_probs for scored in score(str(headed), GROUPS, ALONE)]
    ranking = rank(str(headed), GROUPS, ALONE, by="head")
    assert len({score for group in ranking.groups for score in group.scores}) == 5
    assert [scored.log_probs for scored in score(str(headed), GROUPS, ALONE)] == log_probs


def test_a_folder_without_a_head(tiny_model):
    with pytest.raises(ModelError, match="no preference head"):
        rank(str(tiny_model), GROUPS, ALONE, by="head")


class TestVerbs:
    def test_rank(self, headed, tiny_pairs, tmp_path, run_penchant):
        out = tmp_path / "ranked.jsonl"
        process = run_penchant("rank", headed, "--data", tiny_pairs, "--by", "head", "--output", out, "--json")
        assert process.returncode == 0, process.stderr
        document = json.loads(process.stdout)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert rows == document["groups"]
        assert len(rows) == 48
        assert all(sorted(row["order"]) == [0, 1] for row in rows)
        right = sum(row["order"][0] == 0 for row in rows) / 48
        assert document["accuracy"]["value"] == pytest.approx(right)
