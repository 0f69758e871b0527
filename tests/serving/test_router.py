"""The router: its question, and its decisions from log-probs."""

from __future__ import annotations

import math

import pytest

from penchant.errors import ConfigError, DataError
from penchant.serving.router import Decision, Router, load_router

NAMES = {"conversation": "question", "structured": "task"}
EXAMPLES = (("What is\nRESPA?", "conversation"), ("Name the section: ...", "structured"))


def router(**changes) -> Router:
    return Router(
        **{
            "names": NAMES,
            "asks": "structured",
            "examples": EXAMPLES,
            "fallback": "conversation",
            "threshold": 0.7,
            **changes,
        }
    )


def test_the_question():
    group = router().question("Why  so?")
    assert group.prompt == (
        "Request: What is RESPA?\nKind: question\n\n"
        "Request: Name the section: ...\nKind: task\n\n"
        "Request: Why so?\nKind:"
    )
    assert group.candidates == (" question", " task")


@pytest.mark.parametrize(
    ("log_probs", "prior", "expected"),
    [
        ((math.log(0.2), math.log(0.1)), {}, Decision("conversation", "conversation", 2 / 3)),
        ((math.log(0.1), math.log(0.4)), {}, Decision("structured", "structured", 0.8)),
        ((math.log(0.1), math.log(0.2)), {}, Decision("conversation", "structured", 2 / 3)),
        (
            (math.log(0.1), math.log(0.2)),
            {"conversation": math.log(0.1), "structured": math.log(0.8)},
            Decision("conversation", "conversation", 0.8),
        ),
    ],
)
def test_decisions(log_probs, prior, expected):
    decision = router(prior=prior).decide(log_probs)
    assert (decision.expert, decision.likeliest) == (expected.expert, expected.likeliest)
    assert decision.confidence == pytest.approx(expected.confidence)


def test_labels_by_their_log_probs_per_token():
    """Sums -2 and -6 of one and four tokens: -2 and -1.5 per token, from which the confidence is computed."""
    by_sum, by_token = router(threshold=0.0), router(threshold=0.0, lengths={"conversation": 1, "structured": 4})
    assert by_sum.decide((-2.0, -6.0)).likeliest == "conversation"
    assert by_sum.decide((-2.0, -6.0)).confidence == pytest.approx(1 / (1 + math.exp(-4.0)))
    assert by_token.decide((-2.0, -6.0)).likeliest == "structured"
    assert by_token.decide((-2.0, -6.0)).confidence == pytest.approx(1 / (1 + math.exp(-0.5)))
    prior = {"conversation": -1.0, "structured": -2.0}
    gained = router(threshold=0.0, prior=prior, lengths={"conversation": 1, "structured": 4})
    assert gained.decide((-2.0, -6.0)).confidence == pytest.approx(0.5)


def test_calibration_subtracts_the_log_probs_of_empty_requests():
    def form_alone(groups):
        return [(-1.0, -3.0) for _ in groups]

    calibrated = router().calibrated(form_alone)
    assert calibrated.prior == {"conversation": -1.0, "structured": -3.0}
    assert calibrated.decide((-1.0, -3.0)).confidence == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": EXAMPLES[:1]}, "no example of 'structured'"),
        ({"examples": (*EXAMPLES, ("x", "other"))}, "an example is for 'other', which is not an expert"),
        ({"fallback": "nobody"}, "the fallback 'nobody' is not an expert"),
        ({"asks": "nobody"}, "the asked model 'nobody' is not an expert"),
    ],
)
def test_invalid_routers(changes, message):
    with pytest.raises((DataError, ConfigError), match=message):
        router(**changes)


def test_saved_and_loaded(tmp_path):
    saved = router(prior={"conversation": -1.0, "structured": -2.0}, lengths={"conversation": 2, "structured": 3})
    saved.save(tmp_path)
    assert load_router(tmp_path) == saved
    (tmp_path / "router.json").write_text("{}")
    with pytest.raises(ConfigError, match="no router"):
        load_router(tmp_path)
