"""Hyper-parameters: the published defaults, and the ends of the ranges, which are in or out."""

from __future__ import annotations

import dataclasses

import pytest

from penchant.objectives import OBJECTIVES, SimPO, WeightedSum

DEFAULTS = {
    "dpo": {"beta": 0.1},
    "cdpo": {"beta": 0.1, "label_smoothing": 0.1},
    "robust_dpo": {"beta": 0.1, "label_smoothing": 0.1},
    "ipo": {"beta": 0.1, "log_ratio": "mean"},
    "hinge": {"beta": 0.1},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "orpo": {"weight": 0.1},
    "rpo": {"beta": 0.1, "alpha": 1.0},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "length_normalized_dpo": {"beta": 5.0},
    "plackett_luce": {"beta": 0.1},
    "sft": {},
    "beta_dpo": {
        "beta": 0.1,
        "alpha": 0.6,
        "keep": 0.8,
        "momentum": 0.9,
        "level": "batch",
        "start": "bias_corrected",
    },
    "s_dpo": {"beta": 1.0},
    "multi_reference": {
        "beta": 0.1,
        "mixture": "harmonic",
        "weighting": "adaptive",
        "weights": None,
        "trust_region": 0.1,
        "radius": "adaptive",
        "normalize": "sum",
        "window": 50,
        "discount": 1.0,
        "above_chance": False,
    },
    "ddo_rm": {
        "eta": 1.0,
        "tau": 1.0,
        "detach_target": True,
        "score": "mean_log_prob",
        "rewards": "scores",
        "standardize": "none",
        "kl": 0.0,
        "beta": 0.1,
    },
    "preference_head": {"form": "separable", "label_smoothing": 0.1},
    "bradley_terry": {"centering": 0.0},
    "plackett_luce_reward": {},
    "reward_regression": {},
    "rloo": {"beta": 0.05},
}


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"weighted_sum"}))
def test_defaults_are_the_published_ones(name):
    defaults = {field.name: field.default for field in dataclasses.fields(OBJECTIVES[name])}
    assert defaults.pop("average", "groups") == "groups"
    assert defaults == DEFAULTS[name]


def test_the_default_sum_is_dpo_and_a_fifth_of_sft():
    assert [(part.weight, part.objective.name) for part in WeightedSum().parts] == [(1.0, "dpo"), (0.2, "sft")]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("beta_dpo", {"alpha": 0.0, "keep": 1.0, "momentum": 0.0}),
        ("bradley_terry", {"centering": 0.0}),
        ("cdpo", {"label_smoothing": 0.0}),
        ("robust_dpo", {"label_smoothing": 0.0}),
        ("preference_head", {"label_smoothing": 0.0}),
        ("kto", {"desirable_weight": 0.0, "undesirable_weight": 0.0}),
        ("multi_reference", {"trust_region": 0.0, "window": 1, "discount": 1.0}),
        ("multi_reference", {"weighting": "fixed", "weights": (0.0, 1.0)}),
        ("multi_reference", {"weighting": "fixed", "weights": (0.5, 0.5 + 9e-7)}),
        ("orpo", {"weight": 0.0}),
        ("rloo", {"beta": 0.0}),
        ("rpo", {"alpha": 0.0}),
        ("simpo", {"gamma": 0.0}),
        ("simpo", {"gamma": 2.0}),
    ],
)
def test_the_ends_that_are_in_the_range(name, fields):
    objective = OBJECTIVES[name](**fields)
    assert {field: getattr(objective, field) for field in fields} == fields


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *((name, {"beta": 0.0}) for name in sorted(OBJECTIVES) if "beta" in DEFAULTS.get(name, {}) and name != "rloo"),
        ("beta_dpo", {"keep": 0.0}),
        ("beta_dpo", {"momentum": 1.0}),
        ("cdpo", {"label_smoothing": 0.5}),
        ("robust_dpo", {"label_smoothing": 0.5}),
        ("preference_head", {"label_smoothing": 0.5}),
        ("ddo_rm", {"eta": 0.0}),
        ("ddo_rm", {"tau": 0.0}),
        ("multi_reference", {"discount": 0.0}),
        ("multi_reference", {"weighting": "fixed", "weights": (0.0, 0.0)}),
        ("multi_reference", {"weighting": "fixed", "weights": (0.5, 0.5 + 1.5e-6)}),
        ("weighted_sum", {"parts": ()}),
    ],
)
def test_the_ends_that_are_out_of_it(name, fields):
    with pytest.raises(ValueError, match=list(fields)[-1]):
        OBJECTIVES[name](**fields)


def test_simpo_refuses_a_beta_of_zero_by_its_name():
    """With a gamma of 0 no other limit refuses it."""
    with pytest.raises(ValueError, match="beta is 0"):
        SimPO(beta=0.0, gamma=0.0)
