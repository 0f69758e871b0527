"""Candidates in order, and the best of several samples."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from penchant.data.groups import PreferenceGroup
from penchant.engine.distributed import World
from penchant.errors import ModelError
from penchant.evaluation.answering import Sampling
from penchant.evaluation.held_out import score
from penchant.evaluation.ranking import answer_best_of, rank, rank_by_reward
from penchant.models.preference_head import PreferenceHead, save_head

ALONE = World(0, 1, torch.device("cpu"))
GROUPS = [
    PreferenceGroup("the old cat", (" sees a dog", " runs", " likes the small house"), scores=(1, 2, 3), id="a"),
    PreferenceGroup("it runs", (" to the river", " to small dog"), preferred=1, id="b"),
]


@pytest.fixture
def headed(tmp_path, tiny_model):
    folder = shutil.copytree(tiny_model, tmp_path / "headed")
    torch.manual_seed(0)
    head = PreferenceHead(32, "identity")
    with torch.no_grad():
        head.weight.weight.mul_(50)
    save_head(folder, head)
    return folder


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


def test_the_best_of_several_is_the_heads_choice(headed):
    sampling = Sampling(samples=5, max_new_tokens=6, seed=1)
    best = answer_best_of(str(headed), ["the old cat", "it runs"], sampling)
    for (response,), reward, all_rewards in zip(best.answers.responses, best.rewards, best.all_rewards, strict=True):
        assert reward == max(all_rewards)
        assert len(all_rewards) == 5
        assert isinstance(response, str)
    assert len(set(best.all_rewards[0])) > 1


def test_a_folder_without_a_head(tiny_model):
    with pytest.raises(ModelError, match="no preference head"):
        rank(str(tiny_model), GROUPS, ALONE, by="head")
    with pytest.raises(ModelError, match="no preference head"):
        answer_best_of(str(tiny_model), ["x"], Sampling(samples=2))


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

    def test_generate_best_of(self, headed, run_penchant):
        process = run_penchant("generate", headed, "the old cat", "--best-of", 3, "--max-new-tokens", 5, "--json")
        assert process.returncode == 0, process.stderr
        (row,) = json.loads(process.stdout)["answers"]
        assert row["reward"] == max(row["rewards_of_all"])
        assert len(row["rewards_of_all"]) == 3

    def test_mistakes_exit_with_2(self, tiny_model, headed, run_penchant):
        for arguments, message in (
            (("generate", tiny_model, "cat", "--best-of", 2), "no preference head"),
            (("generate", headed, "cat", "--best-of", 2, "--samples", 2), "both given"),
        ):
            process = run_penchant(*arguments)
            assert process.returncode == 2
            assert message in process.stderr
            assert "Traceback" not in process.stderr
