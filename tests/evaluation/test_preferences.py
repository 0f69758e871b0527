from __future__ import annotations

import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sklearn.metrics import roc_auc_score

from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError, ModelError
from penchant.evaluation.preferences import ScoredGroup, evaluate_preferences, render, write_per_example
from penchant.evaluation.statistics import mean_of_shares


def scored(
    log_probs: tuple[float, ...],
    reference: tuple[float, ...] | None,
    tokens: tuple[int, ...],
    *,
    prompt: str = "p",
    **preference: Any,
) -> ScoredGroup:
    candidates = tuple("abcdef"[: len(log_probs)])
    return ScoredGroup(PreferenceGroup(prompt, candidates, **preference), log_probs, tokens, reference, 7)


#        log-probs        reference      tokens     log-ratios  per token
# 1      -5 > -8          -6, -7         5, 4       1 > -1      -1 > -2
# 2      -8 < -9          -9, -9         4, 9       1 < 0       -2 < -1       (the second is preferred)
# 3      -6 > -6, -4      -7, -7, -6     3, 3, 2    1 > 1, 2    -2 > -2, -2   (two pairs, the first preferred in both)
# none   nothing is known
THREE = [
    scored((-5.0, -8.0), (-6.0, -7.0), (5, 4), preferred=0, id="1"),
    scored((-8.0, -9.0), (-9.0, -9.0), (4, 9), prompt="q", preferred=1, id="2"),
    scored((-6.0, -6.0, -4.0), (-7.0, -7.0, -6.0), (3, 3, 2), scores=(3.0, 1.0, 1.0), id="3"),
    scored((-1.0, -2.0), (-1.0, -1.0), (1, 1), prompt="r", scores=(1.0, 1.0), id="none"),
]
BY_HAND = {
    "accuracy": 1 / 3,  # right; wrong; a tie and wrong
    "auc": 7 / 16,  # preferred 1, 0, 1, 1 against -1, 1, 1, 2: 2 + 1 + 2 + 2 of 16
    "margin": (2 - 1 + (0 - 1) / 2) / 3,
    "top1": 0.0,  # of group 3 alone: worth 3, 1, 1, rewards 1, 1, 2
    "ndcg": (2 / math.log2(3) + 2 / 2) / 2 / 2,  # the best has gain 2 and shares the places 2 and 3
    "kendall_tau": -1 / 2,  # none right, one wrong, of 2 pairs untied in the one and 2 in the other
    "hit_ratio@1": 0.0,  # of group 3 too, whose first is preferred to both others: a better one, and a tie
    "mrr": (1 / 2 + 1 / 3) / 2,
    "ndcg@5": (1 / math.log2(3) + 1 / 2) / 2,
    "ties": 1 / 6,
    "length_accuracy": (1 + 1 + 1 / 2) / 3,
    "log_prob_accuracy": 1 / 3,
    "log_prob_auc": 8 / 16,  # -5, -9, -6, -6 against -8, -8, -6, -4: 3 + 0 + 2.5 + 2.5
    "log_prob_margin": (3 - 1 + (0 - 2) / 2) / 3,
    "log_prob_top1": 0.0,  # -6, -6, -4: as above
    "log_prob_ndcg": (2 / math.log2(3) + 2 / 2) / 2 / 2,
    "log_prob_kendall_tau": -1 / 2,
    "log_prob_hit_ratio@1": 0.0,
    "log_prob_mrr": (1 / 2 + 1 / 3) / 2,
    "log_prob_ndcg@5": (1 / math.log2(3) + 1 / 2) / 2,
    "mean_log_prob_accuracy": 2 / 3,
    "mean_log_prob_auc": 12 / 16,  # -1, -1, -2, -2 against four times -2
    "mean_log_prob_margin": 2 / 3,
    "mean_log_prob_top1": 0.0,  # -2, -2, -2: a tie with a worse one is wrong
    "mean_log_prob_ndcg": 2 * (1 + 1 / math.log2(3) + 1 / 2) / 3 / 2,
    "mean_log_prob_kendall_tau": 0.0,
    "mean_log_prob_hit_ratio@1": 1 / 3,  # all tie: any of the three places
    "mean_log_prob_mrr": (1 + 1 / 2 + 1 / 3) / 3,
    "mean_log_prob_ndcg@5": (1 + 1 / math.log2(3) + 1 / 2) / 3,
}


def test_every_metric_by_hand() -> None:
    report = evaluate_preferences(THREE, beta=0.1)
    assert (report.groups, report.groups_without_pairs, report.pairs, report.prompts) == (3, 1, 4, 2)
    assert {name: estimate.value for name, estimate in report.metrics.items()} == pytest.approx(BY_HAND)
    assert {name: estimate.n for name, estimate in report.metrics.items()} == {
        name: 4 if name.endswith("auc") else 1 if name.endswith(("top1", "ndcg", "tau", "@1", "mrr", "@5")) else 3
        for name in BY_HAND
    }
    assert (report.accuracy, report.auc, report.margin) == tuple(
        report.metrics[name] for name in ("accuracy", "auc", "margin")
    )


def test_the_interval_resamples_prompts_not_groups() -> None:
    # Groups 1 and 3 share a prompt: their values 1 and 0 count as one observation, beside the 0 of another prompt.
    assert evaluate_preferences(THREE).accuracy == mean_of_shares([1, 0, 0], [0, 1, 0])
    assert evaluate_preferences(THREE).accuracy != mean_of_shares([1, 0, 0], [0, 1, 2])


def test_without_a_reference_the_main_metrics_are_of_log_probs() -> None:
    report = evaluate_preferences([replace(row, reference_log_probs=None) for row in THREE])
    names = ("accuracy", "auc", "margin", "top1", "ndcg", "kendall_tau", "hit_ratio@1", "mrr", "ndcg@5")
    expected = BY_HAND | {name: BY_HAND[f"log_prob_{name}"] for name in names}
    assert {name: estimate.value for name, estimate in report.metrics.items()} == pytest.approx(expected)
    assert report.calibration is None
    assert report.to_json()["calibration"] is None
    assert "log-ratio" not in report.definitions["margin"]


def test_beta_scales_the_calibration_and_nothing_else() -> None:
    small, large = evaluate_preferences(THREE, beta=0.1), evaluate_preferences(THREE, beta=1.0)
    assert small.metrics == large.metrics
    assert small.calibration is not None
    assert large.calibration is not None
    # |h| sorted: 0, 1, 1, 2.
    levels = [1 / (1 + math.exp(-x)) for x in (0, 1, 1, 2)]
    assert [calibration_bin.predicted for calibration_bin in large.calibration.bins] == pytest.approx(levels)
    assert small.calibration.bins[-1].predicted == pytest.approx(1 / (1 + math.exp(-0.2)))


def test_policy_equal_to_reference_is_all_ties() -> None:
    equal_rows = [replace(row, reference_log_probs=row.log_probs) for row in THREE]
    metrics = evaluate_preferences(equal_rows).metrics
    assert [metrics[name].value for name in ("accuracy", "auc", "margin", "ties")] == [0, 0.5, 0, 1]


def test_a_group_of_four_counts_as_much_as_a_pair() -> None:
    four = scored((-1.0, -2.0, -3.0, -4.0), None, (1, 1, 1, 1), ranks=(1, 2, 3, 4))
    pair = scored((-2.0, -1.0), None, (1, 1), prompt="q", preferred=0)
    report = evaluate_preferences([four, pair])
    assert report.pairs == 7
    assert report.accuracy.value == 0.5
    # Six margins of 1, 2, 3, 1, 2, 1; and one of -1.
    assert report.margin.value == pytest.approx((10 / 6 - 1) / 2)


def test_weights_are_the_losss() -> None:
    heavy = [replace(row, group=replace(row.group, weight=9.0)) for row in THREE[:1]]
    assert evaluate_preferences([*heavy, *THREE[1:]]).metrics == evaluate_preferences(THREE).metrics


def test_auc_pools_all_pairs_as_sklearn_does() -> None:
    generator = np.random.default_rng(0)
    groups = [
        scored(tuple(np.round(generator.normal(size=2), 1).tolist()), None, (3, 5), prompt=str(i), preferred=i % 2)
        for i in range(80)
    ]
    scores = [log_prob for row in groups for log_prob in row.log_probs]
    labels = [i == row.group.preferred for row in groups for i in range(2)]
    assert evaluate_preferences(groups).auc.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_by_source() -> None:
    sources = ("a", None, "a", "b")
    groups = [replace(row, group=replace(row.group, source=source)) for row, source in zip(THREE, sources, strict=True)]
    by_source = evaluate_preferences(groups).by_source
    assert list(by_source) == ["(no source)", "a"]
    assert by_source["a"].groups == 2
    assert by_source["a"].accuracy.value == 0.5
    assert by_source["a"].margin.value == (2 - 0.5) / 2
    assert by_source["(no source)"].margin.to_json() == {"value": -1.0, "low": None, "high": None, "n": 1}
    assert evaluate_preferences(THREE).by_source == {}


def test_nothing_to_compare() -> None:
    for groups in ([], THREE[3:], [scored((-1.0,), None, (2,), labels=(True,))]):
        document = evaluate_preferences(groups).to_json()
        assert (document["groups"], document["pairs"], document["groups_without_pairs"]) == (0, 0, len(groups))
        assert document["accuracy"] == document["auc"] == {"value": None, "low": None, "high": None, "n": 0}


def test_json_is_the_contracts() -> None:
    document = json.loads(json.dumps(evaluate_preferences(THREE).to_json(), allow_nan=False))
    assert (document["groups"], document["pairs"]) == (3, 4)
    for name, value in BY_HAND.items():
        assert document[name].keys() == {"value", "low", "high", "n"}
        assert document[name]["value"] == pytest.approx(value)
    assert document["definitions"].keys() == {*BY_HAND, "calibration"}
    assert "not multiplied by beta" in document["definitions"]["margin"]


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_log_prob_that_is_not_a_number_is_an_error(bad: float, tmp_path: Path) -> None:
    rows = [THREE[0], replace(THREE[1], reference_log_probs=(-1.0, bad))]
    with pytest.raises(ModelError, match=f"group 2: reference log prob of candidate 1 is {bad}"):
        evaluate_preferences(rows)
    with pytest.raises(ModelError, match=r"what to do: .*float32"):
        write_per_example([replace(THREE[0], log_probs=(bad, 0.0))], tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="2 candidates but 3 tokens"):
        replace(THREE[0], tokens=(1, 2, 3))
    with pytest.raises(ValueError, match="expected at least 1"):
        replace(THREE[0], tokens=(1, 0))
    with pytest.raises(ValueError, match="some groups have reference log-probs"):
        evaluate_preferences([THREE[0], replace(THREE[1], reference_log_probs=None)])


def test_per_example_lines(tmp_path: Path) -> None:
    file = tmp_path / "new" / "out.jsonl"
    write_per_example([THREE[1], replace(THREE[0], reference_log_probs=None, prompt_tokens=3)], file)
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == [
        {
            "id": "2",
            "prompt_tokens": 7,
            "candidates": [
                {"log_prob": -8.0, "tokens": 4, "reference_log_prob": -9.0},
                {"log_prob": -9.0, "tokens": 9, "reference_log_prob": -9.0},
            ],
        },
        {
            "id": "1",
            "prompt_tokens": 3,
            "candidates": [{"log_prob": -5.0, "tokens": 5}, {"log_prob": -8.0, "tokens": 4}],
        },
    ]
    assert [path.name for path in file.parent.iterdir()] == ["out.jsonl"]


def test_per_example_ids_survive_whatever_they_hold(tmp_path: Path) -> None:
    ids = ['ü\n"', "lone \ud800", "line\u2028separator"]
    file = tmp_path / "out.jsonl"
    write_per_example([replace(THREE[0], group=replace(THREE[0].group, id=name)) for name in ids], file)
    assert [json.loads(line)["id"] for line in file.read_bytes().split(b"\n")[:-1]] == ids


def test_a_file_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write_per_example(THREE, tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_per_example(THREE, tmp_path / "file" / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not list(tmp_path.parent.glob(".writing-*"))


def test_the_table_shows_each_number_and_definition() -> None:
    report = evaluate_preferences(
        [replace(row, group=replace(row.group, source=row.group.prompt)) for row in THREE]  # type: ignore[arg-type]
    )
    console = Console(width=200, record=True, file=StringIO())
    console.print(render(report))
    text = console.export_text()
    assert "4 pairs in 3 groups of 2 prompts; 1 without a pair left out" in text
    for name, value in BY_HAND.items():
        assert f"│ {name} " in text
        assert f" {value:.4f} " in text
    assert "[0.0000, 0.5000]" in text
    assert "expected calibration error" in text
    assert "q      │ 1      │ 0.0000" in text
    for definition in report.definitions.values():
        assert definition[:100] in text


@st.composite
def groups_and_orders(draw: st.DrawFn) -> tuple[list[ScoredGroup], list[ScoredGroup]]:
    """Groups, and the same ones with groups, candidates and comparisons in another order."""
    groups, shuffled = [], []
    for i in range(draw(st.integers(1, 5))):
        k = draw(st.integers(1, 4))
        number = st.integers(-12, 0).map(lambda n: n / 4)
        log_probs, reference = (tuple(draw(st.lists(number, min_size=k, max_size=k))) for _ in range(2))
        tokens = tuple(draw(st.lists(st.integers(1, 3), min_size=k, max_size=k)))
        comparison = st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)).filter(lambda pair: pair[0] != pair[1])
        pairs = draw(st.lists(comparison, max_size=4)) if k > 1 else []
        prompt, source = draw(st.sampled_from("xyz")), draw(st.sampled_from(["s", None]))
        group = scored(log_probs, reference, tokens, prompt=prompt, comparisons=tuple(pairs), id=str(i), source=source)
        order = draw(st.permutations(range(k)))
        mapped = tuple((order.index(a), order.index(b)) for a, b in draw(st.permutations(pairs)))
        groups.append(group)
        shuffled.append(
            ScoredGroup(
                replace(group.group, comparisons=mapped, candidates=tuple(group.group.candidates[j] for j in order)),
                tuple(log_probs[j] for j in order),
                tuple(tokens[j] for j in order),
                tuple(reference[j] for j in order),
                7,
            )
        )
    return groups, draw(st.permutations(shuffled))


def flat(document: Any, path: str = "") -> dict[str, Any]:
    items = document.items() if isinstance(document, dict) else enumerate(document)
    leaves: dict[str, Any] = {}
    for key, value in items:
        location = f"{path}/{key}"
        leaves |= flat(value, location) if isinstance(value, dict | list) else {location: value}
    return leaves


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(groups_and_orders())
def test_order_changes_nothing(case: tuple[list[ScoredGroup], list[ScoredGroup]]) -> None:
    ours, theirs = (flat(evaluate_preferences(groups, resamples=40).to_json()) for groups in case)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        expected = pytest.approx(value, abs=1e-9) if isinstance(value, float) else value
        assert theirs[name] == expected, name
