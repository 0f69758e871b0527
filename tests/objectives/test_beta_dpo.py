"""beta-DPO: its moving state by hand, its draws, and every trap of its reference implementation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from penchant.objectives import DPO, BetaDPO, Groups
from penchant.objectives.beta_dpo import draw_pairs

PAIR = torch.tensor([[False, True], [False, False]])


def batch(gaps: list[float], weights: list[float] | None = None):
    """One pair a group, whose h is the gap."""
    n = len(gaps)
    groups = Groups(
        mask=torch.ones(n, 2, dtype=torch.bool),
        tokens=torch.ones(n, 2, dtype=torch.int64),
        better=PAIR.expand(n, 2, 2).clone(),
        scores=torch.zeros(n, 2),
        scored=torch.zeros(n, 2, dtype=torch.bool),
        labels=torch.zeros(n, 2, dtype=torch.int64),
        weights=torch.tensor(weights or [1.0] * n, dtype=torch.float64),
    )
    policy = torch.tensor([[gap, 0.0] for gap in gaps], dtype=torch.float64)
    return policy, torch.zeros(1, n, 2, dtype=torch.float64), groups


def mean(output, name):
    return float(output.metrics[name].total / output.metrics[name].count)


BATCHES = [[1.0, 3.0, 5.0, 7.0], [-2.0, 2.0, 0.0, 4.0], [10.0, 10.0, 10.0, 10.0]]


@pytest.mark.parametrize(
    ("start", "means", "deviations"),
    [
        # m = 0.9: mean 4, 1, 10 and sample deviation 2.58199, 2.58199, 0 of the three batches.
        ("first_batch", [4.0, 3.7, 4.33], [2.5819889, 2.5819889, 2.32379]),
        # The values from zero over 1 - m^t: 0.1, 0.19, 0.271.
        ("bias_corrected", [4.0, 2.42105263, 5.21771218], [2.5819889, 2.5819889, 1.62922546]),
        ("zero", [0.4, 0.46, 1.414], [0.25819889, 0.49057789, 0.4415201]),
    ],
)
def test_the_moving_values_by_hand(start, means, deviations):
    """They follow the whole batch, not the pairs that the filter kept."""
    objective = BetaDPO(start=start, keep=0.5)
    state = objective.initial_state(0)
    for gaps, level, deviation in zip(BATCHES, means, deviations, strict=True):
        _, state = objective(*batch(gaps), state)
        assert float(state["mean"]) == pytest.approx(level, rel=1e-6)
        assert float(state["deviation"]) == pytest.approx(deviation, rel=1e-6)
    assert int(state["step"]) == 3


class TestRoundingNoise:
    """At pi == ref the gaps are rounding noise, and another size of micro-batches rounds otherwise."""

    NOISE = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)) * 1e-5

    @pytest.mark.parametrize("start", ["bias_corrected", "first_batch", "zero"])
    def test_the_draw_does_not_follow_it(self, start):
        objective = BetaDPO(keep=0.5, start=start)
        state = objective.initial_state(0)
        outputs = [objective(*batch(noise.tolist()), state)[0] for noise in self.NOISE]
        assert torch.equal(outputs[0].weights, outputs[1].weights)
        means = [float(output.loss.total / output.loss.count) for output in outputs]
        assert means[0] == pytest.approx(means[1], abs=1e-6)

    @pytest.mark.slow
    def test_the_floor_of_the_deviation_is_a_thousandth_of_a_nat(self):
        """Gaps 0, 0 and 2e-3 with s = 1e-5: the third has exp(-2) / (2 + exp(-2)) of the weight at the floor."""
        state = {**BetaDPO().initial_state(0), "deviation": torch.tensor(1e-5).double(), "step": torch.tensor(1)}
        objective = BetaDPO(keep=0.4, momentum=0.9999999, start="zero")
        case, draw_counts = batch([0.0, 0.0, 2e-3]), torch.zeros(3)
        for seed in range(1500):
            draw_counts += objective(*case, {**state, "seed": torch.tensor(seed)})[0].weights > 0
        share = math.exp(-2) / (2 + math.exp(-2))
        assert abs(float(draw_counts[2]) - 1500 * share) < 4 * math.sqrt(1500 * share * (1 - share))

    def test_the_first_batch_is_the_first_that_is_more_than_noise(self):
        """The averages begin anew until s exceeds the floor: the batch after pi == ref sets them alone."""
        objective = BetaDPO(start="first_batch", keep=1.0)
        state = objective.initial_state(0)
        for gaps, mean_gap in ((self.NOISE[0].tolist(), float(self.NOISE[0].mean())), (BATCHES[0], 4.0)):
            _, state = objective(*batch(gaps), state)
            assert float(state["mean"]) == pytest.approx(mean_gap, rel=1e-5)
        _, state = objective(*batch(BATCHES[1]), state)
        assert float(state["mean"]) == pytest.approx(3.7)


def test_beta_follows_the_gap():
    """beta_0 (1 + alpha (mean of kept M - M0)); with nothing filtered and the first batch as start it is beta_0."""
    objective = BetaDPO(beta=0.2, alpha=0.5, keep=1.0, start="first_batch")
    output, state = objective(*batch([1.0, 3.0]), objective.initial_state(0))
    assert mean(output, "beta_dpo/beta") == pytest.approx(0.2)
    output, _ = objective(*batch([6.0, 8.0]), state)
    level = 0.9 * 2.0 + 0.1 * 7.0
    beta = 0.2 * (1 + 0.5 * (7.0 - level))
    assert mean(output, "beta_dpo/beta") == pytest.approx(beta)
    expected = [math.log1p(math.exp(-beta * gap)) for gap in (6.0, 8.0)]
    assert output.losses.tolist() == pytest.approx(expected)


def test_beta_of_each_instance():
    objective = BetaDPO(beta=0.2, alpha=0.5, keep=1.0, level="instance")
    output, _ = objective(*batch([1.0, 3.0]), objective.initial_state(0))
    betas = [0.2 * (1 + 0.5 * (gap - 2.0)) for gap in (1.0, 3.0)]
    expected = [math.log1p(math.exp(-beta * gap)) for beta, gap in zip(betas, (1.0, 3.0), strict=True)]
    assert output.losses.tolist() == pytest.approx(expected)


def test_beta_never_falls_below_its_floor():
    objective = BetaDPO(alpha=5.0, keep=1.0)
    _, state = objective(*batch([50.0, 50.0]), objective.initial_state(0))
    output, _ = objective(*batch([-50.0, -50.0]), state)
    assert mean(output, "beta_dpo/beta") == pytest.approx(1e-3)


def test_beta_is_a_constant_to_the_gradient():
    objective = BetaDPO(beta=0.2, alpha=0.5, keep=1.0)
    policy, reference, groups = batch([1.0, 4.0])
    policy.requires_grad_()
    state = {**objective.initial_state(0), "mean": torch.tensor(2.0).double(), "step": torch.tensor(1)}
    output, _ = objective(policy, reference, groups, state)
    (gradient,) = torch.autograd.grad(output.loss.total, policy)
    beta = mean(output, "beta_dpo/beta")
    pull = [beta / (1 + math.exp(beta * gap)) for gap in (1.0, 4.0)]
    assert gradient.flatten().tolist() == pytest.approx([-pull[0], pull[0], -pull[1], pull[1]])


def test_beta_follows_the_gaps_of_the_pairs_kept():
    """Half of six pairs is drawn: beta is of their mean gap, and moving averages of all six."""
    objective = BetaDPO(beta=0.2, alpha=0.5, keep=0.5, start="first_batch")
    gaps = [6.0, 8.0, -3.0, 1.0, 11.0, 2.5]
    _, state = objective(*batch([1.0, 3.0, 5.0]), objective.initial_state(1))
    output, new_state = objective(*batch(gaps), state)
    drawn_gaps = [gap for gap, weight in zip(gaps, output.weights.tolist(), strict=True) if weight > 0]
    level = 0.9 * 3.0 + 0.1 * sum(gaps) / 6
    assert len(drawn_gaps) == 3
    assert abs(sum(drawn_gaps) / 3 - sum(gaps) / 6) > 0.5
    assert float(new_state["mean"]) == pytest.approx(level)
    assert mean(output, "beta_dpo/beta") == pytest.approx(max(1e-3, 0.2 * (1 + 0.5 * (sum(drawn_gaps) / 3 - level))))


def test_beta_of_each_instance_is_logged_over_the_pairs_kept():
    objective = BetaDPO(beta=0.2, alpha=0.1, keep=0.5, level="instance", start="first_batch")
    gaps = [1.0, 9.0, -4.0, 3.0]
    output, state = objective(*batch(gaps), objective.initial_state(2))
    drawn_gaps = [gap for gap, weight in zip(gaps, output.weights.tolist(), strict=True) if weight > 0]
    betas = [0.2 * (1 + 0.1 * (gap - float(state["mean"]))) for gap in drawn_gaps]
    assert mean(output, "beta_dpo/beta") == pytest.approx(sum(betas) / 2)


def test_one_pair_has_no_deviation_and_is_kept():
    output, state = BetaDPO(start="first_batch")(*batch([3.0]), BetaDPO().initial_state(0))
    assert float(state["deviation"]) == 0
    assert float(state["mean"]) == 3
    assert float(output.loss.count) == 1


@pytest.mark.parametrize(("deviation", "level"), [(1e-3, 4.0), (1.001e-3, 1.3)])
def test_the_first_batch_begins_anew_up_to_the_floor(deviation, level):
    """A deviation at the floor is noise still: the average is the batch's own 4; above it the average of 1 moves."""
    objective = BetaDPO(start="first_batch")
    numbers = {"deviation": deviation, "mean": 1.0}
    moments = {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}
    state = {**objective.initial_state(0), **moments, "step": torch.tensor(1)}
    _, new_state = objective(*batch(BATCHES[0]), state)
    assert float(new_state["mean"]) == pytest.approx(level)


class TestTheDraw:
    @pytest.mark.parametrize(("pairs", "share", "count"), [(7, 0.8, 5), (3, 0.5, 1), (3, 0.1, 1), (4, 1.0, 4)])
    def test_keeps_whole_pairs_rounded_down_and_at_least_one(self, pairs, share, count):
        drawn_pairs = draw_pairs(PAIR.expand(pairs, 2, 2).clone(), torch.zeros(pairs), share, 0, 0)
        assert int(drawn_pairs.sum()) == count

    def test_keeps_the_share_and_averages_over_it(self):
        output, _ = BetaDPO(keep=0.8)(*batch([float(i) for i in range(10)]), BetaDPO().initial_state(3))
        assert float(output.metrics["beta_dpo/kept"].total) == 8
        assert float(output.metrics["beta_dpo/kept"].count) == 10
        assert (output.weights > 0).sum() == 8
        assert float(output.loss.count) == 8

    def test_is_a_function_of_seed_and_step(self):
        case = batch([float(i) for i in range(10)])
        weights = []
        for seed, step in ((0, 0), (0, 0), (1, 0), (0, 1)):
            state = {**BetaDPO().initial_state(seed), "step": torch.tensor(step)}
            weights.append(BetaDPO(keep=0.5)(*case, state)[0].weights.tolist())
        assert weights[0] == weights[1]
        assert weights[0] != weights[2]
        assert weights[0] != weights[3]

    @pytest.mark.parametrize(
        ("seed", "step", "indices"),
        [
            (0, 0, [0, 1, 3, 5]),
            (0, 1, [1, 4, 6, 7]),
            (1, 0, [0, 1, 2, 7]),
            (3, 2, [0, 1, 3, 7]),
            (7, 41, [0, 2, 3, 5]),
        ],
    )
    def test_the_pairs_of_a_seed_and_a_step_stay_the_same(self, seed, step, indices):
        """A promise: a run's seed gives the same draws in every release."""
        better = PAIR.expand(8, 2, 2).clone()
        drawn_pairs = draw_pairs(better, torch.arange(8).double() / -8, 0.5, seed, step)
        assert drawn_pairs.any((1, 2)).nonzero().flatten().tolist() == indices
        assert int(drawn_pairs.sum()) == 4

    def test_begins_with_the_runs_seed_and_no_step(self):
        state = BetaDPO().initial_state(7)
        assert {name: float(value) for name, value in state.items()} == {
            "seed": 7.0,
            "step": 0.0,
            "mean": 0.0,
            "deviation": 0.0,
        }

    @pytest.mark.slow
    def test_one_pair_is_drawn_with_its_share_of_the_weights(self):
        """Gaps 0, 0 and 2 about M0 = 0 with s = 1: the last has exp(-2) / (2 + exp(-2)) = 0.0634 of the weight."""
        case = batch([0.0, 0.0, 2.0])
        state = {**BetaDPO().initial_state(0), "deviation": torch.tensor(1.0).double(), "step": torch.tensor(1)}
        objective = BetaDPO(keep=0.4, momentum=0.9999999, start="zero")
        draw_counts = torch.zeros(3)
        for seed in range(1500):
            output, _ = objective(*case, {**state, "seed": torch.tensor(seed)})
            draw_counts += output.weights > 0
        share = math.exp(-2) / (2 + math.exp(-2))
        assert float(draw_counts.sum()) == 1500
        assert abs(float(draw_counts[2]) - 1500 * share) < 4 * math.sqrt(1500 * share * (1 - share))

    def test_equal_gaps_are_kept_uniformly(self):
        """At the first step all gaps are 0 and s is 0: no 0/0, and every pair has the same chance."""
        counts = torch.zeros(5)
        for seed in range(400):
            output, _ = BetaDPO(keep=0.6)(*batch([0.0] * 5), BetaDPO().initial_state(seed))
            assert torch.isfinite(output.losses).all()
            counts += output.weights > 0
        assert counts.sum() == 400 * 3
        assert (counts - 240).abs().max() < 5 * math.sqrt(400 * 0.6 * 0.4)

    def test_outliers_go_first(self):
        """Weights exp(-(M - M0)^2 / (2 s^2)): pairs far out are never kept, and their weights do not underflow."""
        state = {
            **BetaDPO().initial_state(0),
            "mean": torch.tensor(0.0).double(),
            "deviation": torch.tensor(1.0).double(),
            "step": torch.tensor(1),
        }
        draw_counts = torch.zeros(6)
        for seed in range(200):
            case = batch([0.0, 0.1, -0.1, 0.2, 30.0, -1000.0])
            seeded_state = {**state, "seed": torch.tensor(seed)}
            # The moving values follow this batch too: with momentum near 1 they stay put.
            output, _ = BetaDPO(keep=0.5, momentum=0.9999999, start="zero")(*case, seeded_state)
            draw_counts += output.weights > 0
        assert draw_counts[4:].tolist() == [0.0, 0.0]
        assert draw_counts[:4].min() > 100


def test_evaluation_is_dpo_at_beta_0():
    case = batch([1.0, -3.0, 2.0], [1.0, 2.0, 3.0])
    state = {**BetaDPO().initial_state(0), "mean": torch.tensor(9.0), "deviation": torch.tensor(1.0)}
    output = BetaDPO(beta=0.3, keep=0.3).evaluate(*case, state)
    expected = DPO(0.3, "pairs").output(*case)
    torch.testing.assert_close(output.losses, expected.losses)
    torch.testing.assert_close(output.weights, expected.weights)


def test_a_batch_without_a_pair_changes_nothing():
    policy, reference, groups = batch([1.0, 2.0])
    without_pairs = replace(groups, better=torch.zeros_like(groups.better))
    state = {**BetaDPO().initial_state(5), "mean": torch.tensor(3.0).double(), "deviation": torch.tensor(1.0).double()}
    output, new_state = BetaDPO()(policy, reference, without_pairs, {**state, "step": torch.tensor(7)})
    assert {name: float(value) for name, value in new_state.items()} == {
        "seed": 5,
        "step": 7,
        "mean": 3,
        "deviation": 1,
    }
    assert float(output.loss.total) == 0
    assert float(output.loss.count) == 0


@pytest.mark.parametrize(
    ("start", "level"),
    [("first_batch", [4.0, 3.7]), ("zero", [0.4, 0.46]), ("bias_corrected", [4.0, 0.46 / 0.19])],
)
def test_the_first_batch_is_the_first_that_has_a_pair(start, level):
    """Means 4 and 1, m = 0.9: of candidates that are sampled, the first prompts' may all have equal rewards."""
    objective = BetaDPO(start=start, keep=1.0)
    policy, reference, groups = batch([100.0, 100.0])
    without_pairs = replace(groups, better=torch.zeros_like(groups.better))
    _, state = objective(policy, reference, without_pairs, objective.initial_state(0))
    for gaps, expected in zip(BATCHES, level, strict=False):
        _, state = objective(*batch(gaps), state)
        assert float(state["mean"]) == pytest.approx(expected, rel=1e-6)
        _, state = objective(policy, reference, without_pairs, state)
    assert int(state["step"]) == 2


@pytest.mark.parametrize(
    "wrong",
    [{"beta": 0}, {"alpha": -1}, {"keep": 0}, {"keep": 1.1}, {"momentum": 1}, {"level": "pair"}, {"start": "last"}],
)
def test_refuses_values_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BetaDPO(**wrong)


@pytest.mark.parametrize("keep", [1.0, 0.6])
def test_gradient_of_a_training_step_by_finite_differences(keep):
    """With alpha = 0 beta is fixed, and what is drawn follows gaps that the smallest steps do not change."""
    objective = BetaDPO(beta=0.2, alpha=0.0, keep=keep)
    policy, reference, groups = batch([1.0, -2.0, 4.0, 0.5, 3.0])
    policy.requires_grad_()
    state = objective.initial_state(0)
    assert torch.autograd.gradcheck(lambda p: objective(p, reference, groups, state)[0].loss.total, (policy,))


@pytest.mark.parametrize("k", [4, 16])
def test_more_candidates_are_more_pairs(compared, k):
    """Nothing filtered, second step: every preferred pair has its term at the batch's beta, and weighs the same."""
    torch.manual_seed(k)
    policy = torch.randn(3, k, dtype=torch.float64) * 5
    reference = torch.randn(1, 3, k, dtype=torch.float64) * 5
    better = torch.rand(3, k, k) < 0.3
    better &= ~torch.eye(k, dtype=torch.bool) & ~better.transpose(1, 2)
    groups = compared(better)
    objective = BetaDPO(beta=0.2, alpha=0.03, keep=1.0, momentum=0.5, start="first_batch")
    _, state = objective(policy * 0, reference, groups, objective.initial_state(0))
    output, _ = objective(policy, reference, groups, state)
    gaps = {
        (g, i, j): float(policy[g, i] - reference[0, g, i] - policy[g, j] + reference[0, g, j])
        for g, i, j in better.nonzero().tolist()
    }
    first_gaps = [float(reference[0, g, j] - reference[0, g, i]) for g, i, j in gaps]
    level = 0.5 * sum(first_gaps) / len(first_gaps) + 0.5 * sum(gaps.values()) / len(gaps)
    beta = max(1e-3, 0.2 * (1 + 0.03 * (sum(gaps.values()) / len(gaps) - level)))
    expected = sum(math.log1p(math.exp(-beta * gap)) for gap in gaps.values()) / len(gaps)
    assert float(output.loss.total / output.loss.count) == pytest.approx(expected, rel=1e-9)


def test_evaluation_counts_every_pair_once():
    """A group of three ordered candidates has three pairs, and one of two has one."""
    triple = torch.tensor([[False, True, True], [False, False, True], [False, False, False]])
    couple = torch.tensor([[False, True, False], [False, False, False], [False, False, False]])
    groups = Groups(
        mask=torch.tensor([[True, True, True], [True, True, False]]),
        tokens=torch.ones(2, 3, dtype=torch.int64),
        better=torch.stack([triple, couple]),
        scores=torch.zeros(2, 3),
        scored=torch.zeros(2, 3, dtype=torch.bool),
        labels=torch.zeros(2, 3, dtype=torch.int64),
        weights=torch.ones(2, dtype=torch.float64),
    )
    policy = torch.tensor([[3.0, 2.0, 0.0], [-1.0, 0.0, 0.0]], dtype=torch.float64)
    objective = BetaDPO(beta=0.5)
    output = objective.evaluate(policy, torch.zeros(1, 2, 3, dtype=torch.float64), groups, objective.initial_state(0))
    gaps = [1.0, 3.0, 2.0, -1.0]
    expected = sum(math.log1p(math.exp(-0.5 * gap)) for gap in gaps) / len(gaps)
    assert float(output.loss.total / output.loss.count) == pytest.approx(expected, rel=1e-12)
