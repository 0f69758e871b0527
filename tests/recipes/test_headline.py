"""The headline of every recipe is the served model's score, also where scores are missing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from penchant.cli.recipe import agents, dialogues, experts, hit_ratios, rounds
from penchant.recipes.results import (
    dialogue_headline,
    domain_expert_headline,
    headline_text,
    recommend_headline,
    recovered_line,
    self_improve_headline,
    tool_calling_headline,
)

NOTHING = {"value": None, "low": None, "high": None, "n": 0}


def estimate(value: float, n: int = 39) -> dict[str, Any]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": n}


def domain_expert(recovered: dict[str, Any]) -> dict[str, Any]:
    """A run in which every request fell back, although the router alone is right for 0.931 of them."""
    router = {"accuracy": estimate(0.931), "accuracy_with_fallback": estimate(0.078), "fell_back": 39}
    models = {"instruct": {"instructions_f1": estimate(0.5)}, "routed experts": {"instructions_f1": estimate(0.3)}}
    return {
        "router": router,
        "residual": {"chosen": 0.7},
        "evaluation": {"models": models, "recovered": recovered},
    }


def recommendations() -> dict[str, Any]:
    models = {name: {"hit_ratio@1": estimate(value)} for name, value in (("start", 0.1), ("sft", 0.4), ("s_dpo", 0.5))}
    gains = {"hit_ratio@1_over": {"s_dpo": {"sft": estimate(0.1)}}}
    baselines = {"popularity": {"hit_ratio@1": estimate(0.2)}}
    return {"evaluation": {"models": models, **gains}, "questions": {"baselines": baselines}}


def dialogue() -> dict[str, Any]:
    values = {name: {"all": {"preference_accuracy": estimate(value)}} for name, value in (("sft", 0.6), ("dpo", 0.8))}
    return {"evaluation": {"models": {"small": values}}}


def tool_calls() -> dict[str, Any]:
    models = {name: {"all": estimate(value)} for name, value in (("base", 0.1), ("sft", 0.5), ("sft_dpo", 0.7))}
    return {"evaluation": {"models": models, "edge": {"sft_dpo": {"int8": {"right": estimate(0.66)}}}}}


def improvement(served: int) -> dict[str, Any]:
    rounds = [
        {"round": n, "served": s, "success": estimate(v), "gained": estimate(v - 0.1), "distance": 0.0}
        for n, s, v in ((0, 0, 0.1), (1, served, 0.3))
    ]
    return {"evaluation": {"rounds": rounds, "signs": {"distance": "KL"}}}


def test_router_headline_begins_with_the_accuracy_with_fallback() -> None:
    text = headline_text(domain_expert_headline(domain_expert(estimate(0.9))))
    assert text == (
        "the router with its fallback: 0.078 [0.028, 0.128] of requests reach the right expert, 39 of 39 fell back; "
        "without the fallback 0.931 [0.881, 0.981] would; instructions_f1 0.300 [0.250, 0.350]"
    )


def test_headline_of_every_recipe() -> None:
    assert headline_text(recommend_headline(recommendations())) == (
        "s_dpo, the last method: hit ratio@1 0.500 [0.450, 0.550]; sft 0.400 [0.350, 0.450], "
        "popularity 0.200 [0.150, 0.250]"
    )
    assert headline_text(dialogue_headline(dialogue())) == (
        "small dpo, the last method: preference_accuracy 0.800 [0.750, 0.850]; sft 0.600 [0.550, 0.650]"
    )
    assert headline_text(tool_calling_headline(tool_calls())) == (
        "sft_dpo, the last path: right calls 0.700 [0.650, 0.750]; with eight-bit weights 0.660 [0.610, 0.710], "
        "base 0.100 [0.050, 0.150]"
    )
    assert headline_text(self_improve_headline(improvement(3))) == (
        "update 3, served: success 0.300 [0.250, 0.350]; before 0.100 [0.050, 0.150], gained 0.200 [0.150, 0.250]"
    )
    assert headline_text(self_improve_headline(improvement(0))).startswith(
        "the first learner, which is still served: success"
    )


def test_missing_scores_are_named() -> None:
    assert recovered_line(domain_expert(estimate(0.9))) == (
        "of the instruct model's score 0.900 [0.850, 0.950] came back with 0.7 of the residual"
    )
    assert recovered_line(domain_expert(NOTHING)) == (
        "nothing came back with 0.7 of the residual, for the instruct model's score was not lost"
    )
    empty = recommendations()
    empty["evaluation"]["models"]["s_dpo"] = {"hit_ratio@1": NOTHING}
    assert "hit ratio@1 not measured" in headline_text(recommend_headline(empty))


@pytest.mark.parametrize(
    ("show", "results", "headline"),
    [
        (experts, domain_expert(NOTHING), domain_expert_headline),
        (hit_ratios, recommendations(), recommend_headline),
        (dialogues, dialogue(), dialogue_headline),
        (agents, tool_calls(), tool_calling_headline),
        (rounds, improvement(1), self_improve_headline),
    ],
)
def test_terminal_output_begins_with_the_headline(show, results, headline) -> None:
    stream = io.StringIO()
    Console(file=stream, width=400).print(show(results, Path("report.html")))
    assert stream.getvalue().splitlines()[0].strip() == headline_text(headline(results))
