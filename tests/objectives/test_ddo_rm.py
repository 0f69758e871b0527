"""DDO-RM: its target distribution, its gradient, and what the authors' code does instead."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from penchant.objectives import DDORM, Groups


def case(scores, rewards, tokens=None):
    """Groups whose log-probs per token are `scores`."""
    s = torch.tensor(scores, dtype=torch.float64)
    g, k = s.shape
    n = torch.ones(g, k, dtype=torch.int64) if tokens is None else torch.tensor(tokens)
    groups = Groups(
        mask=torch.ones(g, k, dtype=torch.bool),
        tokens=n,
        better=torch.zeros(g, k, k, dtype=torch.bool),
        scores=torch.tensor(rewards, dtype=torch.float64),
        scored=torch.ones(g, k, dtype=torch.bool),
        labels=torch.zeros(g, k, dtype=torch.int64),
        weights=torch.ones(g, dtype=torch.float64),
    )
    return (s * n).requires_grad_(), torch.zeros(0, g, k, dtype=torch.float64), groups


def mean(output, name):
    value = output.metrics[f"ddo_rm/{name}"]
    return float(value.total / value.count)


def test_equal_rewards_teach_nothing():
    policy, reference, groups = case([[-1.0, -2.0, -0.5]], [[3.0, 3.0, 3.0]], [[2, 5, 7]])
    output = DDORM().evaluate(policy, reference, groups, {})
    (gradient,) = torch.autograd.grad(output.loss.total, policy)
    assert gradient.abs().max() < 1e-15
    assert mean(output, "kl") == pytest.approx(0.0, abs=1e-15)
    assert mean(output, "entropy") == pytest.approx(float(output.losses[0]))


@pytest.mark.parametrize(("eta", "tau"), [(1.0, 1.0), (2.0, 0.5)])
def test_the_gradient_is_p_minus_q_over_tau(eta, tau):
    policy, reference, groups = case([[-1.0, -2.0, -0.5, -3.0]], [[0.3, 1.0, -2.0, 0.5]])
    output = DDORM(eta=eta, tau=tau).evaluate(policy, reference, groups, {})
    (gradient,) = torch.autograd.grad(output.loss.total, policy)
    p = (policy.detach() / tau).softmax(1)
    tilted = p * torch.exp(eta * groups.scores / tau)
    q = tilted / tilted.sum(1, keepdim=True)
    torch.testing.assert_close(gradient, (p - q) / tau)
    assert mean(output, "target_reward") == pytest.approx(float((q * groups.scores).sum()))
    assert mean(output, "expected_reward") == pytest.approx(float((p * groups.scores).sum()))
    assert mean(output, "target_reward") > mean(output, "expected_reward")
    assert mean(output, "kl") == pytest.approx(float((q * (q / p).log()).sum()))


@pytest.mark.parametrize(("detach", "expected"), [(True, -0.0108), (False, 0.2153)])
def test_the_authors_gradient_can_oppose_the_reward(detach, expected):
    """d = -2 and a reward gap of +0.1: theirs is sigma(d) - q - q (1 - q) d, which pushes the better one down."""
    policy, reference, groups = case([[-2.0, 0.0]], [[0.1, 0.0]])
    output = DDORM(detach_target=detach).evaluate(policy, reference, groups, {})
    (gradient,) = torch.autograd.grad(output.loss.total, policy)
    d = torch.tensor(-2.0, dtype=torch.float64)
    q = torch.sigmoid(d + 0.1)
    formula = torch.sigmoid(d) - q - (0.0 if detach else q * (1 - q) * d)
    assert float(gradient[0, 0]) == pytest.approx(float(formula), rel=1e-10)
    assert float(gradient[0, 0]) == pytest.approx(expected, abs=1e-3)


def test_the_gradient_with_the_target_in_it_by_finite_differences():
    policy, reference, groups = case([[-1.0, -2.0, -0.5], [-0.1, -4.0, -2.0]], [[0.3, 1.0, -2.0], [1.0, 0.0, 2.0]])
    objective = DDORM(detach_target=False, tau=0.7, kl=0.0)
    assert torch.autograd.gradcheck(lambda p: objective.evaluate(p, reference, groups, {}).loss.total, (policy,))


def test_wins_stand_for_scores():
    """Of four ranked candidates the best wins three of three: (wins - losses) / (K - 1) = 1, 1/3, -1/3, -1."""
    policy, reference, groups = case([[-1.0, -2.0, -0.5, -3.0]], [[9.0, 9.0, 9.0, 9.0]])
    ranked = replace(
        groups, better=torch.ones(4, 4, dtype=torch.bool).triu(1)[None], scored=torch.zeros(1, 4, dtype=torch.bool)
    )
    by_wins = DDORM(rewards="wins").evaluate(policy, reference, ranked, {})
    scored = replace(groups, scores=torch.tensor([[1.0, 1 / 3, -1 / 3, -1.0]], dtype=torch.float64))
    torch.testing.assert_close(by_wins.losses, DDORM().evaluate(policy, reference, scored, {}).losses)
    assert DDORM(rewards="wins").needs.pairs
    assert not DDORM(rewards="wins").needs.scores


def test_standardised_rewards_have_mean_0_and_deviation_1():
    policy, reference, groups = case([[-1.0, -2.0, -0.5]], [[10.0, 20.0, 60.0]])
    centred = torch.tensor([[10.0, 20.0, 60.0]], dtype=torch.float64) - 30
    standardised = replace(groups, scores=centred / (centred**2).mean().sqrt())
    output = DDORM(standardize="prompt").evaluate(policy, reference, groups, {})
    torch.testing.assert_close(output.losses, DDORM().evaluate(policy, reference, standardised, {}).losses)


@pytest.mark.parametrize(("difference", "scaled"), [(3e-6, 1.0), (1e-6, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("standardize", ["prompt", "running"])
def test_rewards_that_differ_by_less_than_a_millionth_count_as_equal(standardize, difference, scaled):
    """Half a difference over a deviation of 1e-6 at least; where all are equal nothing is learnt and nothing is NaN."""
    policy, reference, groups = case([[-1.0, -2.0]], [[difference, 0.0]])
    objective = DDORM(standardize=standardize)
    output, _ = objective(policy, reference, groups, objective.initial_state(0))
    by_hand = replace(groups, scores=torch.tensor([[scaled, -scaled]], dtype=torch.float64))
    expected = DDORM().evaluate(policy, reference, by_hand, {})
    torch.testing.assert_close(output.losses, expected.losses, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "objective", [DDORM(rewards="wins"), DDORM(standardize="prompt"), DDORM(rewards="wins", kl=1.0)]
)
def test_one_candidate_alone_is_finite(objective):
    policy, _, groups = case([[-1.0, -2.0, -0.5]] * 2, [[1.0, 5.0, 2.0]] * 2)
    single = torch.tensor([[True, False, False], [False, False, False]])
    single_groups = replace(groups, mask=single, scored=single)
    output = objective.evaluate(policy, torch.full((1, 2, 3), -1.0).double(), single_groups, {})
    assert output.losses.tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(output.losses.sum(), policy)
    assert (gradient == 0).all()


def test_pair_accuracy_is_over_groups_that_have_pairs():
    """One of two pairs in the first group (a tie is wrong), none in the second, and one of one in the third."""
    policy, reference, groups = case([[-1.0, -2.0, -1.0]] * 3, [[3.0, 2.0, 1.0]] * 3)
    better = torch.zeros(3, 3, 3, dtype=torch.bool)
    better[0, 0, 1] = better[0, 0, 2] = better[2, 0, 1] = True
    accuracy = DDORM().evaluate(policy, reference, replace(groups, better=better), {}).metrics["rewards/accuracies"]
    assert float(accuracy.total) == 1.5
    assert float(accuracy.count) == 2


class TestRunningMoments:
    def test_are_of_all_rewards_so_far(self):
        """Batches 1, 3 and 5, 9, 12: after both the mean is 6 and the deviation 4; the unscored 100 counts in none."""
        objective = DDORM(standardize="running")
        first_batch = case([[-1.0, -2.0]], [[1.0, 3.0]])
        policy, reference, second = case([[-1.0, -2.0, -0.5, -4.0]], [[5.0, 9.0, 12.0, 100.0]])
        second = replace(second, scored=torch.tensor([[True, True, True, False]]))
        output, state = objective(*first_batch, objective.initial_state(0))
        torch.testing.assert_close(output.losses, DDORM().evaluate(*case([[-1.0, -2.0]], [[-1.0, 1.0]]), {}).losses)
        output, state = objective(policy, reference, second, state)
        assert {name: float(value) for name, value in state.items()} == pytest.approx(
            {"count": 5, "mean": 6, "squares": 80}
        )
        scaled = replace(second, scores=(second.scores - 6) / 4)
        torch.testing.assert_close(output.losses, DDORM().evaluate(policy, reference, scaled, {}).losses)
        assert mean(objective.evaluate(policy, reference, second, state), "target_reward") == pytest.approx(
            mean(DDORM().evaluate(policy, reference, scaled, {}), "target_reward")
        )

    def test_keep_the_sizes_of_differences_that_prompt_loses(self):
        """Two candidates are 1 and -1 for each prompt, whether they differ by 0.01 or by 10."""
        policy, reference, groups = case([[-1.0, -2.0], [-1.0, -2.0]], [[0.0, 0.01], [0.0, 10.0]])
        prompt_losses = DDORM(standardize="prompt").evaluate(policy, reference, groups, {}).losses
        assert float(prompt_losses[0]) == pytest.approx(float(prompt_losses[1]))
        objective = DDORM(standardize="running")
        output, _ = objective(policy, reference, groups, objective.initial_state(0))
        assert float(output.losses[1] - output.losses[0]) > 0.1

    def test_before_the_first_batch_and_after_an_empty_one_rewards_are_as_they_are(self):
        objective = DDORM(standardize="running")
        policy, reference, groups = case([[-1.0, -2.0]], [[1.0, 3.0]])
        state = objective.initial_state(0)
        without_scores = replace(groups, scored=torch.zeros(1, 2, dtype=torch.bool))
        _, new_state = objective(policy, reference, without_scores, state)
        assert new_state == state
        expected = DDORM().evaluate(policy, reference, groups, {})
        torch.testing.assert_close(objective.evaluate(policy, reference, groups, new_state).losses, expected.losses)
        assert objective.coupled
        assert not DDORM(standardize="prompt").coupled


@pytest.mark.parametrize("score", ["log_prob", "log_ratio"])
def test_other_scores(score):
    policy, _, groups = case([[-1.0, -2.0, -0.5]], [[0.0, 1.0, 2.0]], [[3, 4, 5]])
    reference = torch.tensor([[[-2.0, -9.0, -4.0]]], dtype=torch.float64)
    output = DDORM(score=score, beta=0.2).evaluate(policy, reference, groups, {})
    s = policy.detach() if score == "log_prob" else 0.2 * (policy.detach() - reference[0])
    q = (s + groups.scores).softmax(1)
    torch.testing.assert_close(output.losses, -(q * s.log_softmax(1)).sum(1))
    assert DDORM(score=score).needs.references == int(score == "log_ratio")


@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_an_anchor_to_the_reference(tau):
    policy, _, groups = case([[-1.0, -2.0, -0.5]], [[0.0, 1.0, 2.0]])
    reference = torch.tensor([[[-2.0, -3.0, -4.0]]], dtype=torch.float64)
    plain = DDORM(tau=tau).evaluate(policy, reference, groups, {})
    output = DDORM(tau=tau, kl=0.5).evaluate(policy, reference, groups, {})
    p, log_ref = (policy.detach() / tau).softmax(1), (reference[0] / tau).log_softmax(1)
    torch.testing.assert_close(output.losses - plain.losses, 0.5 * (p * (p.log() - log_ref)).sum(1))
    assert DDORM(kl=0.5).needs.references == 1


@pytest.mark.parametrize("unscored", [7.0, math.nan])
@pytest.mark.parametrize(
    "objective",
    [
        DDORM(),
        DDORM(standardize="prompt"),
        DDORM(score="log_prob", tau=0.7),
        DDORM(score="log_ratio", detach_target=False, standardize="prompt"),
        DDORM(kl=0.5, tau=0.7),
    ],
    ids=repr,
)
def test_candidates_without_a_score_are_left_out(objective, unscored):
    """The loss, its gradient and all metrics are those of the two that have one."""
    policy, _, groups = case([[-1.0, -2.0, -0.5]], [[-4.0, -1.0, unscored]])
    reference = torch.tensor([[[-2.0, -2.5, -0.3]]], dtype=torch.float64)
    partly = replace(groups, scored=torch.tensor([[True, True, False]]))
    alone, _, two = case([[-1.0, -2.0]], [[-4.0, -1.0]])
    output, expected = (
        objective.evaluate(policy, reference, partly, {}),
        objective.evaluate(alone, reference[..., :2], two, {}),
    )
    torch.testing.assert_close(output.losses, expected.losses)
    (gradient,) = torch.autograd.grad(output.loss.total, policy)
    (of_two,) = torch.autograd.grad(expected.loss.total, alone)
    torch.testing.assert_close(gradient[:, :2], of_two)
    assert float(gradient[0, 2]) == 0
    for name, value in expected.metrics.items():
        torch.testing.assert_close(output.metrics[name].total, value.total)
        torch.testing.assert_close(output.metrics[name].count, value.count)


@pytest.mark.parametrize("objective", [DDORM(), DDORM(kl=0.5, tau=0.7, detach_target=False)], ids=repr)
def test_one_or_no_candidate_has_no_gradient(objective):
    policy, _, groups = case([[-1.0, -2.0, -0.5]] * 2, [[1.0, 5.0, 2.0]] * 2)
    few = replace(groups, scored=torch.tensor([[False, True, False], [False, False, False]]))
    reference = torch.tensor([[[-2.0, -2.5, -0.3]] * 2], dtype=torch.float64)
    output = objective.evaluate(policy, reference, few, {})
    (gradient,) = torch.autograd.grad(output.losses.sum(), policy)
    assert output.losses.tolist() == [0.0, 0.0]
    assert output.weights.tolist() == [0.0, 0.0]
    assert gradient.tolist() == [[0.0] * 3] * 2
    assert all(float(value.total) == float(value.count) == 0 for value in output.metrics.values())


def test_top_1_is_whether_the_policys_choice_is_the_rewards():
    policy, reference, groups = case([[-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0]], [[2.0, 1.0], [1.0, 2.0], [1.0, 1.0]])
    assert mean(DDORM().evaluate(policy, reference, groups, {}), "top1") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "wrong",
    [{"eta": 0}, {"tau": 0}, {"beta": 0}, {"kl": -1}, {"score": "sum"}, {"rewards": "ranks"}, {"standardize": "all"}],
)
def test_refuses_values_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DDORM(**wrong)
