"""A comparison's configuration: short forms, and every mistake named at once."""

from __future__ import annotations

import pytest
import yaml

from penchant.comparison.cells import subset, variants
from penchant.comparison.config import Bench, load_bench
from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError

LEAST = {"output": "o", "base": {"model": "m", "data": "d"}, "methods": ["dpo", "ipo"], "baseline": "dpo"}


@pytest.fixture
def load(tmp_path):
    def write(*overrides: str, **keys: object) -> Bench:
        file = tmp_path / "bench.yaml"
        file.write_text(yaml.safe_dump({**LEAST, **keys}))
        return load_bench(file, overrides)

    return write


def test_a_name_is_a_method(load):
    methods = load(methods=["dpo", {"objective": {"name": "ipo", "beta": 0.3}}]).methods
    assert [(m.label, m.objective) for m in methods] == [
        ("dpo", {"name": "dpo"}),
        ("ipo", {"name": "ipo", "beta": 0.3}),
    ]


def test_variants_have_names_that_are_folders(load):
    bench = load(
        methods=[{"label": "DPO, the usual!", "objective": {"name": "dpo"}, "grid": {"objective.beta": [0.1, 1]}}],
        baseline="DPO, the usual!",
    )
    assert [v.name for v in variants(bench)] == ["dpo-the-usual-beta-0.1", "dpo-the-usual-beta-1"]


def test_overrides_reach_the_base(load):
    assert load("base.data.held_out=0.1", "seeds=[7]").base["data"] == {"train": "d", "held_out": 0.1}
    assert load("seeds=[7]").seeds == [7]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"baseline": "dpp"}, "baseline 'dpp' is no label (did you mean dpo?)"),
        ({"methods": ["dpo", "dpo"]}, "two methods have the label 'dpo'"),
        ({"methods": ["start", "dpo"]}, "'start' is the starting model's row"),
        ({"methods": []}, "methods"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds names a value twice"),
        ({"sizes": [1.5]}, "1.5 is neither a share in (0, 1] nor a count"),
        ({"sizes": [0]}, "0 is neither a share"),
        ({"base": {"model": "m", "output": "x"}}, "base.output is set by the comparison itself"),
        ({"meassure": {}}, "meassure: there is no such key (did you mean measure?)"),
        ({"measure": {"sampels": 3}}, "measure.sampels: there is no such key (did you mean samples?)"),
        ({"measure": {"reward": {}}}, "expected one of model, function and judge, found none"),
        ({"measure": {"reward": {"model": "a", "function": "b"}}}, "found model and function"),
        (
            {
                "methods": [{"label": "a", "objective": {"name": "dpo"}, "grid": {"objective.beta": []}}],
                "baseline": "a",
            },
            "has no values",
        ),
        *(
            ({"methods": [{"label": "a", "objective": {"name": "dpo"}, **settings}], "baseline": "a"}, message)
            for settings, message in [
                ({"set": {"model": "m"}}, "model is the same for all methods; set it once: base.model"),
                ({"set": {"output": "o"}}, "output is the same for all methods; set it once: output"),
                ({"set": {"training.seed": 1}}, "training.seed is the same for all methods; set it once: seeds"),
                ({"set": {"training": {"seed": 1}}}, "training.seed is the same"),
                ({"set": {"data.train": "t"}}, "data.train is the same for all methods; set it once: base.data"),
                ({"set": {"data": {"held_out": 0.1}}}, "data.held_out is the same"),
                ({"set": {"data": "t"}}, "data is the same for all methods"),
                ({"set": {"data.format": "f"}}, "data.format is the same"),
                ({"grid": {"data.train": ["t"]}}, "data.train is the same"),
                ({"grid": {"data": [{"split": "t"}]}}, "data.split is the same"),
            ]
        ),
        ({"search": {"parameters": {"model": ["a", "b"]}}}, "model is the same for all methods"),
        *(
            ({"measure": {"primary": name}}, f"no verdict on {name}: {reason}; use accuracy, margin, auc")
            for name, reason in [
                ("kl", "far from the start is neither better nor worse"),
                ("kl_error", "it is an error of kl"),
                ("words", "longer is neither better nor worse"),
                ("length_accuracy", "it is the data's own, the same for every model"),
            ]
        ),
        ({"measure": {"primary": "win_rate"}}, "needs measure.judge and measure.samples above 0"),
        ({"measure": {"primary": "win_rate", "judge": {"function": "f.py:g"}, "samples": 0}}, "needs measure.judge"),
        (
            {"measure": {"primary": "win_rate", "judge": {"function": "f.py:g"}, "against": "baseline"}},
            "the judge compares with the baseline, which has no win rate against itself",
        ),
        (
            {"measure": {"primary": "win_rate", "judge": {"function": "f.py:g"}}, "baseline": "start"},
            "the judge compares with the start, which has no win rate against itself",
        ),
        ({"search": {"parameters": {}}}, "names nothing to vary"),
        ({"search": {"parameters": {"objective.beta": {"low": 1, "high": 0}}}}, "expected low < high"),
        ({"search": {"parameters": {"objective.beta": {"low": 0.1, "high": 1}}}}, "a grid takes lists of values"),
    ],
)
def test_mistakes(load, keys, message):
    with pytest.raises(ConfigError) as error:
        load(**keys)
    assert message in str(error.value)
    assert "bench.yaml" in str(error.value)


def test_a_verdict_on_win_rates_against_the_start(load):
    measure = {"primary": "win_rate", "judge": {"function": "f.py:g"}}
    assert load(measure=measure).measure.primary == "win_rate"


def test_a_method_may_read_the_same_data_in_its_own_way(load):
    settings = {"data.max_length": 64, "reference": "r", "reward": {"model": "rm"}, "data": {"truncation": "drop"}}
    methods = [{"label": "a", "objective": {"name": "dpo"}, "set": settings}]
    assert load(methods=methods, baseline="a").methods[0].set == settings


class TestSubsets:
    GROUPS = tuple(PreferenceGroup(f"p{i // 2}", ("a", "b"), id=str(i)) for i in range(20))

    @pytest.mark.parametrize(("size", "expected"), [(1.0, 20), (0.5, 10), (0.05, 2), (7, 8), (1, 2)])
    def test_whole_prompts_up_to_a_share_or_a_count(self, size, expected):
        part = subset(self.GROUPS, size, seed=0)
        assert len(part) == expected
        prompts = {group.prompt for group in part}
        assert [g for g in self.GROUPS if g.prompt in prompts] == part

    def test_each_contains_the_smaller(self):
        parts = [{g.id for g in subset(self.GROUPS, n, seed=3)} for n in (2, 6, 12, 20)]
        assert parts[0] < parts[1] < parts[2] < parts[3]
        assert {g.id for g in subset(self.GROUPS, 6, seed=4)} != parts[1]
