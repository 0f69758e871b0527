"""What a comparison says of its seeds and prompts before it trains."""

from __future__ import annotations

import pytest

from penchant.comparison.config import Bench
from penchant.comparison.design import design_notes
from penchant.data.groups import PreferenceGroup


def bench(**keys: object) -> Bench:
    values: dict[str, object] = {"output": "out", "base": {}, "methods": ["dpo", "ipo"], "baseline": "dpo", **keys}
    return Bench.model_validate(values)


def held_out(prompts: int, groups: int = 1) -> list[PreferenceGroup]:
    return [PreferenceGroup(f"p{n}", ("a", "b"), preferred=0) for n in range(prompts) for _ in range(groups)]


def test_five_seeds_are_the_default() -> None:
    assert bench().seeds == [0, 1, 2, 3, 4]
    assert len(design_notes(bench(), held_out(300))) == 1


def test_the_difference_that_can_be_found() -> None:
    methods = ["dpo", "ipo", "hinge", "cdpo", "robust_dpo", "orpo"]
    [note] = design_notes(bench(methods=methods, seeds=[0, 1, 2]), held_out(300))
    assert note == (
        "with 3 seeds, 300 held-out prompts and 5 methods a difference of about 11 points in accuracy is detected 8 "
        "times in 10, where models differ on a third of the prompts and seeds change little"
    )
    # The groups of one prompt are no more prompts; against the start, every method is compared.
    [grouped_note] = design_notes(bench(methods=methods, seeds=[0, 1, 2]), held_out(300, groups=3))
    assert grouped_note == note
    assert "and 6 methods" in design_notes(bench(methods=methods, baseline="start"), held_out(300))[0]


@pytest.mark.parametrize(("seeds", "warning"), [([0], "1 seed: no method"), ([0, 1], "2 seeds hardly show how seeds")])
def test_too_few_seeds_warn(seeds, warning) -> None:
    notes = design_notes(bench(seeds=seeds), held_out(300))
    assert notes[-1].startswith(warning)
    assert notes[-1].endswith("use seeds: [0, 1, 2, 3, 4]")
    assert len(notes) == len(seeds)


def test_what_cannot_be_foretold() -> None:
    assert design_notes(bench(measure={"primary": "margin"}), held_out(300)) == []
    assert design_notes(bench(measure={"primary": "auc"}), held_out(300)) == []
    [note] = design_notes(bench(measure={"primary": "log_prob_top1"}), held_out(300))
    assert "in log_prob_top1" in note
    [small_data_note] = design_notes(bench(seeds=[0, 1, 2]), held_out(3))
    assert small_data_note == (
        "with 3 seeds, 3 held-out prompts and 1 method no difference in accuracy is likely to be detected: use more "
        "of them"
    )
