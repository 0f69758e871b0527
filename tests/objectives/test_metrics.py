"""The metrics of every method, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from penchant.objectives import (
    CDPO,
    DDORM,
    IPO,
    KTO,
    ORPO,
    RLOO,
    RPO,
    SDPO,
    BetaDPO,
    BradleyTerry,
    Groups,
    Hinge,
    LengthNormalizedDPO,
    MultiReference,
    PlackettLuce,
    PlackettLuceReward,
    PreferenceHead,
    RewardRegression,
    RobustDPO,
    SimPO,
)

POLICY = torch.tensor([[-4.0, -9.0, -6.0], [-2.0, -1.0, -8.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[[-5.0, -8.0, -6.5], [-3.0, -4.0, -2.0]]], dtype=torch.float64)
DELTA = POLICY - REFERENCE[0]  # [[1, -1, .5], [1, 3, -6]]


@pytest.fixture
def groups() -> Groups:
    """Candidate 0 is preferred to both others in the first group, and to the last one in the second."""
    better = torch.zeros(2, 3, 3, dtype=torch.bool)
    better[0, 0, 1] = better[0, 0, 2] = better[1, 0, 2] = True
    return Groups(
        mask=torch.ones(2, 3, dtype=torch.bool),
        tokens=torch.tensor([[2, 3, 4], [1, 1, 4]]),
        better=better,
        scores=torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]]),
        scored=torch.ones(2, 3, dtype=torch.bool),
        labels=torch.tensor([[1, -1, 0], [1, 1, -1]]),
        weights=torch.ones(2),
        mismatched=torch.zeros(2, 3, dtype=torch.bool),
        rewards=torch.tensor([[2.0, 1.0, 3.0], [0.0, 7.0, -1.0]], dtype=torch.float64),
    )


def means(output) -> dict[str, float]:
    return {name: float(value.total / value.count) for name, value in output.metrics.items()}


@pytest.mark.parametrize(
    ("objective", "scale", "per_token"),
    [
        (CDPO(0.2), 0.2, False),
        (RobustDPO(0.2), 0.2, False),
        (Hinge(0.2), 0.2, False),
        (PlackettLuce(0.2), 0.2, False),
        (SDPO(0.2), 0.2, False),
        (RPO(0.2), 0.2, False),
        (IPO(0.2, "sum"), 0.2, False),
        (IPO(0.2), 0.2, True),
        (LengthNormalizedDPO(3.0), 3.0, True),
        (MultiReference(0.2, weighting="uniform"), 0.2, False),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_rewards_are_beta_times_log_ratios(groups, objective, scale, per_token):
    metrics = means(objective.evaluate(POLICY, REFERENCE, groups, {}))
    r = scale * (DELTA / groups.tokens if per_token else DELTA)
    chosen = float((r[0, 0] + r[1, 0]) / 2)
    rejected = float(((r[0, 1] + r[0, 2]) / 2 + r[1, 2]) / 2)
    assert metrics["rewards/chosen"] == pytest.approx(chosen)
    assert metrics["rewards/rejected"] == pytest.approx(rejected)
    assert metrics["rewards/margins"] == pytest.approx(chosen - rejected)
    assert metrics["logps/chosen"] == pytest.approx(-3.0)
    assert metrics["logps/rejected"] == pytest.approx((-7.5 - 8) / 2)


@pytest.mark.parametrize(("objective", "scale"), [(SimPO(2.0), 2.0), (ORPO(0.3), 0.3)], ids=["simpo", "orpo"])
def test_without_a_reference_rewards_are_of_log_probs_per_token(groups, objective, scale):
    metrics = means(objective.evaluate(POLICY, REFERENCE[:0], groups, {}))
    means_ = POLICY / groups.tokens
    chosen, rejected = (means_[0, 0] + means_[1, 0]) / 2, ((means_[0, 1] + means_[0, 2]) / 2 + means_[1, 2]) / 2
    assert metrics["rewards/chosen"] == pytest.approx(float(scale * chosen))
    assert metrics["rewards/rejected"] == pytest.approx(float(scale * rejected))


def test_s_dpo_is_right_above_all_negatives(groups):
    """By pairs it would be right in 3 of 4; the positive of the second group is not above its hardest negative."""
    second = groups.better.clone()
    second[1] = torch.tensor([[False, True, True], [False, False, False], [False, False, False]])
    metrics = means(SDPO().evaluate(POLICY, REFERENCE, replace(groups, better=second), {}))
    assert metrics["rewards/accuracies"] == pytest.approx(0.5)


def test_s_dpo_accuracy_is_a_mean_over_a_groups_positives(compared):
    """Of two positives one is above all it beats, then the only one is, then it ties with one: (1/2 + 1 + 0) / 3."""
    better = torch.zeros(4, 4, 4, dtype=torch.bool)
    better[0, 0, 2] = better[0, 0, 3] = better[0, 1, 3] = True
    better[1, 0, 1] = better[1, 0, 2] = better[1, 1, 2] = True
    better[2, 0, 1] = better[2, 0, 2] = True
    rewards = torch.tensor([[1.0, -1.0, 0.5, 0.0], [3.0, 2.0, 1.0, 9.0], [1.0, 1.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    metrics = SDPO(1.0).output(rewards, torch.zeros(1, 4, 4), compared(better)).metrics["rewards/accuracies"]
    assert float(metrics.total) == 1.5
    assert float(metrics.count) == 3


@pytest.mark.parametrize(("average", "expected"), [("groups", "groups"), ("pairs", "pairs")])
def test_rpo_likelihood_is_per_token_of_each_chosen_response(groups, average, expected):
    """The first group's chosen response in two pairs, the second's in one: as the loss averages."""
    metrics = means(RPO(0.2, 0.5, average).evaluate(POLICY, REFERENCE, groups, {}))
    first_nll, second_nll = -float(POLICY[0, 0] / groups.tokens[0, 0]), -float(POLICY[1, 0] / groups.tokens[1, 0])
    weights = groups.weights.tolist()
    counts = [weights[0] * (2 if expected == "pairs" else 1), weights[1]]
    assert metrics["nll_loss"] == pytest.approx((counts[0] * first_nll + counts[1] * second_nll) / sum(counts))


def test_kto(groups):
    """Desirable: 0 of the first, 0 and 1 of the second; undesirable: 1 of the first, 2 of the second."""
    mask = groups.mask.clone()
    mask[0, 2] = False
    mismatched_groups = replace(groups, mask=mask, mismatched=~mask)
    metrics = means(KTO(0.2).evaluate(POLICY, REFERENCE, mismatched_groups, {}))
    assert metrics == pytest.approx(
        {
            "rewards/chosen": 0.2 * (1 + 1 + 3) / 3,
            "rewards/rejected": 0.2 * (-1 - 6) / 2,
            "logps/chosen": (-4 - 2 - 1) / 3,
            "logps/rejected": (-9 - 8) / 2,
            "kl": 0.5,
        }
    )


@pytest.mark.parametrize("objective", [BradleyTerry(), PlackettLuceReward(), RewardRegression()], ids=lambda o: o.name)
def test_reward_models_log_their_own_rewards(groups, objective):
    metrics = means(objective.evaluate(groups.rewards, REFERENCE[:0], groups, {}))
    assert metrics["rewards/chosen"] == pytest.approx((2 + 0) / 2)
    assert metrics["rewards/rejected"] == pytest.approx(((1 + 3) / 2 - 1) / 2)
    assert metrics["rewards/accuracies"] == pytest.approx((0.5 + 1) / 2)
    assert not any(name.startswith("logps") for name in metrics)
    if objective.name == "reward_regression":
        assert metrics["score/error"] == pytest.approx((1 + 0 + 1 + 0 + 2 + 2) / 6)


def test_a_head_logs_rewards_not_losses(groups):
    metrics = means(PreferenceHead().evaluate(POLICY, REFERENCE[:0], groups, {}))
    assert metrics["head/chosen"] == pytest.approx(1.0)
    assert metrics["head/margins"] == pytest.approx(((1 - 1) / 2 + 1) / 2)
    assert metrics["logps/chosen"] == pytest.approx(-3.0)
    assert not any(name.startswith("rewards/") for name in metrics)


def test_a_model_without_a_head_is_refused(groups):
    with pytest.raises(ValueError, match="no preference head"):
        PreferenceHead().evaluate(POLICY, REFERENCE[:0], replace(groups, rewards=None), {})


def test_rloo(groups):
    metrics = means(RLOO(0.5).evaluate(POLICY, REFERENCE, groups, {}))
    returns = groups.scores - 0.5 * DELTA
    advantages = (returns - returns.mean(1, keepdim=True)) * 1.5
    assert metrics["reward"] == pytest.approx(2.0)
    assert metrics["kl"] == pytest.approx(float(DELTA.mean()))
    assert metrics["advantage/squared"] == pytest.approx(float((advantages**2).mean()))


def test_rloo_gradient_is_minus_the_advantage(groups):
    policy = POLICY.clone().requires_grad_()
    output = RLOO(0.5).evaluate(policy, REFERENCE, groups, {})
    (gradient,) = torch.autograd.grad(output.loss.total, policy)
    returns = groups.scores - 0.5 * DELTA
    torch.testing.assert_close(gradient, -(returns - returns.mean(1, keepdim=True)) * 1.5 / 3)


def test_ddo_rm_accuracy_is_of_its_scores(groups):
    """Per token: -2, -3, -1.5 and -2, -1, -2: right once in two pairs, and a tie, which is not right."""
    metrics = means(DDORM().evaluate(POLICY, REFERENCE[:0], groups, {}))
    assert metrics["rewards/accuracies"] == pytest.approx((0.5 + 0) / 2)


def ddo_rm_metrics(policy, groups, eta: float, tau: float) -> dict[str, float]:
    """DDO-RM's metrics in plain numbers, of the scored candidates; pairs are those of the data."""
    totals: dict[str, list[float]] = {}
    for g in range(len(policy)):
        s = {i: float(policy[g, i]) / int(groups.tokens[g, i]) for i in range(3) if groups.mask[g, i]}
        pairs = [(i, j) for i in s for j in s if groups.better[g, i, j]]
        if pairs:
            right = sum(s[i] > s[j] for i, j in pairs) / len(pairs)
            totals.setdefault("rewards/accuracies", []).append(right)
        r = {i: float(groups.scores[g, i]) for i in s if groups.scored[g, i]}
        if len(r) < 2:
            continue
        p = {i: math.exp(s[i] / tau) for i in r}
        q = {i: p[i] * math.exp(eta * r[i] / tau) for i in r}
        p, q = ({i: x / sum(d.values()) for i, x in d.items()} for d in (p, q))
        metrics = {
            "expected_reward": sum(p[i] * r[i] for i in r),
            "target_reward": sum(q[i] * r[i] for i in r),
            "entropy": -sum(p[i] * math.log(p[i]) for i in r),
            "target_entropy": -sum(q[i] * math.log(q[i]) for i in r),
            "kl": sum(q[i] * math.log(q[i] / p[i]) for i in r),
            "top1": float(r[max(r, key=lambda i: s[i])] == max(r.values())),
        }
        for name, value in metrics.items():
            totals.setdefault(f"ddo_rm/{name}", []).append(value)
    return {name: sum(values) / len(values) for name, values in totals.items()}


def test_ddo_rm_metrics_of_partly_scored_groups():
    """All scored; one not there; one without a score, above and below the others; one score; none; ties of both."""
    better = torch.zeros(7, 3, 3, dtype=torch.bool)
    for g, i, j in [(0, 0, 1), (0, 0, 2), (0, 2, 1), (1, 1, 0), (2, 0, 1), (2, 0, 2), (3, 1, 2), (6, 0, 2), (6, 0, 1)]:
        better[g, i, j] = True
    yes, no, nan = True, False, math.nan
    rows = [
        ([-4.0, -9.0, -5.0], [1.0, 0.3, -0.5], [yes, yes, yes]),
        ([-3.0, -8.0, nan], [-1.0, -2.0, nan], [yes, yes, no]),
        ([-0.5, -6.0, -2.0], [nan, -2.0, -1.0], [no, yes, yes]),
        ([-20.0, -6.0, -2.0], [9.0, -1.0, -2.0], [no, yes, yes]),
        ([-1.0, -2.0, -3.0], [nan, 4.0, nan], [no, yes, no]),
        ([-1.0, -2.0, -3.0], [nan, nan, nan], [no, no, no]),
        ([-2.0, -3.0, -4.0], [0.5, 0.5, -1.0], [yes, yes, yes]),
    ]
    policy = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    mask = ~policy.isnan()
    partly_scored = Groups(
        mask=mask,
        tokens=torch.tensor([[2, 3, 4], [2, 2, 0], [1, 2, 3], [4, 1, 1], [1, 1, 1], [1, 1, 1], [2, 2, 4]]),
        better=better,
        scores=torch.tensor([row[1] for row in rows], dtype=torch.float64),
        scored=torch.tensor([row[2] for row in rows]),
        labels=torch.zeros(7, 3, dtype=torch.int64),
        weights=torch.ones(7),
    )
    expected = ddo_rm_metrics(policy, partly_scored, eta=1.5, tau=0.5)
    assert len(expected) == 7
    assert expected["ddo_rm/top1"] == pytest.approx(3 / 5)
    assert expected["rewards/accuracies"] == pytest.approx((2 / 3 + 0 + 1 + 0 + 1 / 2) / 5)
    metrics = means(DDORM(eta=1.5, tau=0.5).evaluate(policy, REFERENCE[:0], partly_scored, {}))
    assert metrics == pytest.approx(expected, rel=1e-7)


def test_beta_dpo(groups):
    output, _ = BetaDPO(0.2, keep=1.0)(POLICY, REFERENCE, groups, BetaDPO().initial_state(0))
    metrics = means(output)
    gaps = torch.tensor([2.0, 0.5, 7.0])
    assert metrics["beta_dpo/mean"] == pytest.approx(float(gaps.mean()))
    assert metrics["beta_dpo/deviation"] == pytest.approx(float(gaps.std()))
    assert metrics["beta_dpo/kept"] == 1.0
    assert metrics["rewards/margins"] == pytest.approx(0.2 * (1.25 + 7) / 2)


def test_multi_reference_weights_and_clipping(groups):
    """The second reference is far above the first: all its log-probs of the pairs are clipped."""
    both = torch.cat([REFERENCE, REFERENCE / 100])
    metrics = means(MultiReference(weighting="fixed", weights=(0.25, 0.75)).evaluate(POLICY, both, groups, {}))
    assert metrics["multi_reference/weight_0"] == 0.25
    assert metrics["multi_reference/weight_1"] == 0.75
    assert metrics["multi_reference/clipped"] == 0.5


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        (CDPO, {"label_smoothing": 0.5}),
        (CDPO, {"label_smoothing": -0.1}),
        (RobustDPO, {"label_smoothing": 0.5}),
        (CDPO, {"beta": 0}),
        (RobustDPO, {"beta": 0}),
        (IPO, {"beta": 0}),
        (IPO, {"log_ratio": "total"}),
        (Hinge, {"beta": 0}),
        (SimPO, {"beta": 0}),
        (SimPO, {"gamma": -0.1}),
        (SimPO, {"gamma": 2.1}),
        (RPO, {"beta": 0}),
        (RPO, {"alpha": -0.1}),
        (ORPO, {"weight": -1}),
        (KTO, {"beta": 0}),
        (KTO, {"desirable_weight": -1}),
        (KTO, {"undesirable_weight": -1}),
        (LengthNormalizedDPO, {"beta": 0}),
        (PlackettLuce, {"beta": 0}),
        (SDPO, {"beta": 0}),
        (BradleyTerry, {"centering": -1}),
        (PreferenceHead, {"form": "both"}),
        (PreferenceHead, {"label_smoothing": 0.5}),
        (RLOO, {"beta": -1}),
        *((method, {"average": "rows"}) for method in (CDPO, RobustDPO, IPO, Hinge, SimPO, ORPO, RPO, BradleyTerry)),
    ],
)
def test_refuses_values_out_of_range(method, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        method(**wrong)


def test_a_group_without_pairs_is_in_no_mean_over_pairs(groups):
    better = groups.better.clone()
    better[1] = False
    metrics = CDPO().output(POLICY, REFERENCE, replace(groups, better=better)).metrics
    # Rewards of the first group's pairs: 0.1 (1 - -1) and 0.1 (1 - 0.5).
    assert float(metrics["rewards/margins"].total / metrics["rewards/margins"].count) == pytest.approx(0.125)
    assert {name: float(metrics[name].count) for name in ("rewards/margins", "rewards/accuracies")} == {
        "rewards/margins": 1.0,
        "rewards/accuracies": 1.0,
    }


def test_a_group_without_scores_has_no_gradient_by_rloo(groups):
    scored = groups.scored.clone()
    scored[1] = False
    policy = POLICY.clone().requires_grad_()
    RLOO().output(policy, REFERENCE, replace(groups, scored=scored)).loss.total.backward()
    assert policy.grad is not None
    assert policy.grad[1].tolist() == [0.0, 0.0, 0.0]
    assert policy.grad[0].isfinite().all()
