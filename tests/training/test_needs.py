"""A method without what it needs: one clear error before a model is loaded; a part that lacks it is counted."""

from __future__ import annotations

import pytest

from penchant.config.run import parse_config
from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError, DataError
from penchant.training.needs import check_head, check_references, check_sampled, filter_learnable_groups


def config(objective: str, **sections: object):
    values = {"model": "m", "data": "d", "output": "o", "objective": {"name": objective}, **sections}
    return parse_config(values, "run.yaml")


def group(number: int, k: int = 2, **fields: object) -> PreferenceGroup:
    return PreferenceGroup("prompt", tuple("abcd"[:k]), id=f"g{number}", **fields)


class TestReferences:
    def test_more_than_the_method_takes(self):
        with pytest.raises(ConfigError, match="references names 2 models, dpo takes 1"):
            check_references(config("dpo", references=["a", "b"]))

    def test_several_where_the_method_takes_them(self):
        assert check_references(config("multi_reference", references=["a", "b", "c"])) is None

    def test_none_where_the_method_mixes_them(self):
        with pytest.raises(ConfigError, match="multi_reference mixes references, and none is named"):
            check_references(config("multi_reference"))

    def test_one_that_is_not_used_is_told(self):
        assert "not used" in check_references(config("sft", reference="a"))

    def test_both_keys(self):
        with pytest.raises(ConfigError, match="reference and references are both set"):
            config("dpo", reference="a", references=["b"])


class TestSampled:
    def test_needs_a_reward(self):
        with pytest.raises(ConfigError, match="candidates: sampled needs a reward"):
            config("dpo", candidates="sampled")

    @pytest.mark.parametrize(
        ("objective", "message"),
        [
            ("multi_reference", "table made before training"),
            ("kto", "other prompts"),
            ("bradley_terry", "sampled from"),
        ],
    )
    def test_methods_that_cannot(self, objective, message):
        with pytest.raises(ConfigError, match=message):
            check_sampled(config(objective, candidates="sampled", reward={"function": "f.py:g"}), 1)

    def test_too_few_samples(self):
        run = config("rloo", candidates="sampled", reward={"function": "f.py:g"}, sampling={"samples": 1})
        with pytest.raises(ConfigError, match=r"compares at least 2, sampling\.samples is 1"):
            check_sampled(run, 1)

    def test_several_processes(self):
        with pytest.raises(ConfigError, match="one process"):
            check_sampled(config("rloo", candidates="sampled", reward={"function": "f.py:g"}), 2)


class TestHead:
    def test_a_frozen_backbone_without_a_head(self):
        with pytest.raises(ConfigError, match=r"head\.freeze_backbone is true, and dpo has no head"):
            check_head(config("dpo", head={"freeze_backbone": True}))

    def test_a_frozen_backbone_with_one(self):
        check_head(config("preference_head", head={"freeze_backbone": True}))
        check_head(config("dpo", head={"pooling": "tanh"}))


class TestUsable:
    @pytest.mark.parametrize(
        ("objective", "groups", "message"),
        [
            ("dpo", [group(0, k=1)], "compares at least 2 candidates, 1 of 1 groups have fewer (first: g0)"),
            ("dpo", [group(0), group(1, scores=(1.0, 1.0))], "no group says which candidate is better"),
            ("ddo_rm", [group(0, preferred=0)], "ddo_rm learns from scores, and no group has any"),
            ("rloo", [group(0, preferred=0)], "rloo learns from scores, and no group has any"),
            ("kto", [group(0, k=1)], "kto learns from labels, and no group has labels or preferences"),
        ],
    )
    def test_no_group_has_it(self, objective, groups, message):
        with pytest.raises(DataError) as error:
            filter_learnable_groups(config(objective), groups, "training", "file.jsonl", [])
        assert message in str(error.value)
        assert "file.jsonl" in str(error.value)

    @pytest.mark.parametrize(
        ("objective", "having", "message"),
        [
            ("dpo", {"preferred": 1}, "all candidates tie"),
            ("ddo_rm", {"scores": (1.0, 2.0)}, "no scores"),
            ("kto", {"labels": (True, False)}, "neither labels nor preferences"),
        ],
    )
    def test_a_group_that_lacks_it_is_left_out_and_told(self, objective, having, message):
        notes: list[str] = []
        learnable_groups = filter_learnable_groups(
            config(objective), [group(0, **having), group(1)], "training", "file.jsonl", notes
        )
        assert [g.id for g in learnable_groups] == ["g0"]
        assert notes == [f"training: 1 of 2 groups left out: {message}"]

    def test_a_reward_gives_the_scores(self):
        run = config("ddo_rm", reward={"function": "f.py:g"})
        assert len(filter_learnable_groups(run, [group(0)], "training", "file.jsonl", [])) == 1
