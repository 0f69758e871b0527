"""Tests of the leaderboard's overall score against its definition, written out again."""

from __future__ import annotations

import math
import random

import pytest

from penchant.evaluation.tool_calls.leaderboard import PARTS, LeaderboardScore

CATEGORIES = [name for _, shares in PARTS.values() for name in shares]


def mean(*values: float) -> float:
    return sum(values) / len(values)


def test_the_weights():
    assert sum(weight for weight, _ in PARTS.values()) == pytest.approx(1)
    assert all(sum(shares.values()) == pytest.approx(1) for _, shares in PARTS.values())
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 21


def test_the_score_by_its_definition():
    draw = random.Random(0)
    answers = {
        name: [draw.random() < 0.5 for _ in range(draw.randint(1, 9))] for name in [*CATEGORIES, "live_relevance"]
    }
    right = {name: sum(rows) / len(rows) for name, rows in answers.items()}
    simple = mean(*(right[f"simple_{name}"] for name in ("python", "java", "javascript")))
    sizes = {"simple": 258, "multiple": 1053, "parallel": 16, "parallel_multiple": 24}
    parts = {
        "non_live": mean(simple, right["multiple"], right["parallel"], right["parallel_multiple"]),
        "live": sum(right[f"live_{name}"] * size for name, size in sizes.items()) / 1351,
        "irrelevance": mean(right["irrelevance"], right["live_irrelevance"]),
        "multi_turn": mean(*(right[name] for name in CATEGORIES if name.startswith("multi_turn"))),
        "agentic": mean(
            mean(right["web_search_base"], right["web_search_no_snippet"]),
            mean(right["memory_kv"], right["memory_vector"], right["memory_rec_sum"]),
        ),
    }
    score = LeaderboardScore.from_categories(answers)
    assert score.parts == pytest.approx(parts)
    expected = (10 * parts["non_live"] + 10 * parts["live"] + 10 * parts["irrelevance"] + 30 * parts["multi_turn"]
                + 40 * parts["agentic"]) / 100  # fmt: skip
    assert score.overall.value == pytest.approx(expected)
    assert (score.of_measured, score.missing) == (pytest.approx(expected), ())


def test_what_is_not_measured_counts_as_0():
    score = LeaderboardScore.from_categories(
        {"simple_python": [True, False], "multi_turn_base": [True], "mine": [True]}
    )
    assert score.overall.value == pytest.approx(0.1 / 12 / 2 + 0.3 / 4)
    assert score.measured_weight == pytest.approx(0.1 / 12 + 0.3 / 4)
    assert score.of_measured == pytest.approx(score.overall.value / (0.1 / 12 + 0.3 / 4))
    assert score.parts == pytest.approx(
        {"non_live": 1 / 24, "live": 0, "irrelevance": 0, "multi_turn": 0.25, "agentic": 0}
    )
    assert set(score.missing) == set(CATEGORIES) - {"simple_python", "multi_turn_base"}
    variance = (0.1 / 12) ** 2 * 0.25 / 6 + 0.075**2 * (3 / 5) * (2 / 5) / 5
    assert score.overall.value - score.overall.low == pytest.approx(1.959964 * math.sqrt(variance))
    # No more than all of what was measured can be right.
    assert score.overall.high == pytest.approx(score.measured_weight)
    assert score.overall.n == 3
    assert LeaderboardScore.from_categories({"mine": [True]}) is None
