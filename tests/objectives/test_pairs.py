"""Functions that pairwise and ranking methods share, by hand, with garbage in masked slots."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from penchant.objectives import ORPO, SFT, Groups, MultiReference, Part, RobustDPO, SimPO, WeightedSum
from penchant.objectives.dpo import DPO
from penchant.objectives.pairs import (
    average_pairs,
    beaten_logsumexp,
    differences,
    log_ratios,
    mean_log_probs,
    ranking_losses,
)

NAN = math.nan


@pytest.fixture
def groups() -> Groups:
    """Two groups of up to three; the first ranks 0 > 1 > 2, the second 1 > 0 and has no third."""
    better = torch.zeros(2, 3, 3, dtype=torch.bool)
    better[0, 0, 1] = better[0, 1, 2] = better[0, 0, 2] = better[1, 1, 0] = True
    return Groups(
        mask=torch.tensor([[True, True, True], [True, True, False]]),
        tokens=torch.tensor([[2, 4, 5], [1, 10, 0]]),
        better=better,
        scores=torch.zeros(2, 3),
        scored=torch.zeros(2, 3, dtype=torch.bool),
        labels=torch.zeros(2, 3, dtype=torch.int64),
        weights=torch.tensor([2.0, 3.0]),
    )


POLICY = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, NAN]])
REFERENCE = torch.tensor([[-2.0, -2.0, -2.0], [-1.0, -9.0, NAN]])


def test_log_ratios(groups):
    assert log_ratios(POLICY, REFERENCE, groups).tolist() == [[1.0, 0.0, -1.0], [-3.0, 4.0, 0.0]]


def test_mean_log_probs(groups):
    assert mean_log_probs(POLICY, groups).tolist() == [[-0.5, -0.5, pytest.approx(-0.6)], [-4.0, -0.5, 0.0]]


def test_differences(groups):
    values = torch.tensor([[5.0, 3.0, -1.0], [2.0, 9.0, NAN]])
    margins = differences(values, groups.better)
    assert margins[0].tolist() == [[0.0, 2.0, 6.0], [0.0, 0.0, 4.0], [0.0, 0.0, 0.0]]
    assert margins[1].tolist() == [[0.0, 0.0, 0.0], [7.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_average_pairs(groups):
    losses = torch.full((2, 3, 3), NAN)
    losses[groups.better] = torch.tensor([1.0, 2.0, 6.0, 5.0])
    means, weights = average_pairs(losses, groups, "groups")
    assert means.tolist() == [3.0, 5.0]
    assert weights.tolist() == [2.0, 3.0]
    assert average_pairs(losses, groups, "pairs")[1].tolist() == [6.0, 3.0]


def test_beaten_logsumexp(groups):
    values = torch.tensor([[5.0, 3.0, -1.0], [2.0, 9.0, NAN]], requires_grad=True)
    log_sums = beaten_logsumexp(values, groups.better)
    expected = [[math.log(math.exp(3) + math.exp(-1)), -1.0, -math.inf], [-math.inf, 2.0, -math.inf]]
    assert log_sums[0].tolist() == pytest.approx(expected[0])
    assert log_sums[1].tolist() == pytest.approx(expected[1])
    (gradient,) = torch.autograd.grad(torch.where(log_sums.isfinite(), log_sums, 0.0).sum(), values)
    assert gradient[:, :2].isfinite().all()


def test_ranking_losses(groups):
    values = torch.tensor([[5.0, 3.0, -1.0], [2.0, 9.0, 0.0]], requires_grad=True)
    losses, ranked = ranking_losses(values, groups.better)
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    assert gradient.isfinite().all()
    assert float(gradient[1, 2]) == 0
    first_loss = math.log(math.exp(5) + math.exp(3) + math.exp(-1)) - 5 + math.log(math.exp(3) + math.exp(-1)) - 3
    assert losses.tolist() == pytest.approx([first_loss, math.log(1 + math.exp(-7))], rel=1e-5)
    assert ranked.tolist() == [True, True]
    assert ranking_losses(values, torch.zeros_like(groups.better))[1].tolist() == [False, False]


class TestSFT:
    def test_weights_metrics_and_masks(self, groups):
        """Of the first group candidate 0 is learnt (1 nat, 2 tokens), of the second candidate 1 (5 nats, 10 tokens)."""
        output = SFT().output(POLICY, REFERENCE[:0], groups)
        assert output.losses.tolist() == pytest.approx([0.5, 0.5])
        assert output.weights.tolist() == [4.0, 30.0]
        metric = output.metrics["logps/chosen"]
        assert float(metric.total) == -6.0
        assert float(metric.count) == 2


class TestWeightedSum:
    PARTS = (Part(2.0, DPO(0.5)), Part(0.3, SFT()), Part(-1.0, SimPO()))

    def test_is_the_sum_of_the_parts_own_means(self, groups):
        objective = WeightedSum(self.PARTS)
        output = objective.evaluate(POLICY, REFERENCE[None], groups, {})
        expected = 0.0
        for part in self.PARTS:
            loss = part.objective.evaluate(POLICY, REFERENCE[None], groups, {}).loss
            expected += part.weight * float(loss.total / loss.count)
            metric = output.metrics[f"{part.objective.name}/loss"]
            assert float(metric.total) == pytest.approx(float(loss.total))
            assert float(metric.count) == pytest.approx(float(loss.count))
        assert float(output.loss.total / output.loss.count) == pytest.approx(expected)
        assert output.weights.tolist() == [1.0, 1.0]

    def test_gradient_is_the_sum_of_the_parts(self, groups):
        policy = torch.nan_to_num(POLICY, nan=-1.0).requires_grad_()
        whole = WeightedSum(self.PARTS).evaluate(policy, torch.nan_to_num(REFERENCE)[None], groups, {}).loss
        (gradient,) = torch.autograd.grad(whole.total / whole.count, policy)
        expected = torch.zeros_like(policy)
        for part in self.PARTS:
            loss = part.objective.evaluate(policy, torch.nan_to_num(REFERENCE)[None], groups, {}).loss
            expected = expected + part.weight * torch.autograd.grad(loss.total / loss.count, policy)[0]
        torch.testing.assert_close(gradient, expected)

    def test_a_part_with_nothing_to_learn_from_adds_nothing(self, groups):
        without_pairs = replace(groups, better=torch.zeros_like(groups.better))
        output = WeightedSum((Part(1.0, DPO()), Part(1.0, SFT()))).evaluate(POLICY, REFERENCE[None], without_pairs, {})
        alone = SFT().output(POLICY, REFERENCE[:0], without_pairs).loss
        assert float(output.loss.total / output.loss.count) == pytest.approx(float(alone.total / alone.count))

    def test_a_part_that_is_fitted_to_its_references(self, groups):
        part = MultiReference(weighting="best_single", trust_region=None)
        objective = WeightedSum((Part(1.0, DPO()), Part(1.0, part)))
        reference = torch.stack([REFERENCE, 2 * REFERENCE])
        state = objective.fit(reference, groups, objective.initial_state(0))
        assert state.keys() == {"1/weights"}
        alone = part.fit(reference, groups, {})
        assert torch.equal(state["1/weights"], alone["weights"])
        output, new_state = objective(POLICY, reference, groups, state)
        assert new_state.keys() == state.keys()
        assert torch.isfinite(output.loss.total)

    def test_one_part_is_that_part(self, groups):
        output, _ = WeightedSum((Part(1.0, DPO(0.5)),))(POLICY, REFERENCE[None], groups, {})
        alone = DPO(0.5).output(POLICY, REFERENCE[None], groups).loss
        assert float(output.loss.total / output.loss.count) == pytest.approx(float(alone.total / alone.count))
        assert "rewards/margins" in output.metrics

    def test_of_two_metrics_of_one_name_the_first_parts_is_kept(self, groups):
        parts = Part(1.0, DPO(0.5)), Part(1.0, DPO(3.0)), Part(1.0, SFT())
        for ordered in (parts, (parts[1], parts[0], parts[2])):
            output = WeightedSum(ordered).evaluate(POLICY, REFERENCE[None], groups, {})
            first_output = ordered[0].objective.evaluate(POLICY, REFERENCE[None], groups, {})
            assert float(output.metrics["rewards/margins"].total) == float(
                first_output.metrics["rewards/margins"].total
            )
            assert float(output.metrics["dpo/loss"].total) == pytest.approx(float(first_output.loss.total))

    def test_refuses_none_and_what_cannot_go_together(self):
        from penchant.objectives import BradleyTerry

        with pytest.raises(ValueError, match="at least one"):
            WeightedSum(())
        with pytest.raises(ValueError, match="a model has one output"):
            WeightedSum((Part(1.0, DPO()), Part(1.0, BradleyTerry())))


def test_orpo_of_a_certain_response_is_finite(groups):
    """A probability of 1 has no odds; the loss and its gradient stay finite."""
    policy = torch.zeros(2, 3, requires_grad=True)
    output = ORPO(1.0).output(policy, REFERENCE[:0], groups)
    (gradient,) = torch.autograd.grad(output.loss.total, policy)
    assert torch.isfinite(output.losses).all()
    assert torch.isfinite(gradient).all()


def test_orpo_odds_of_a_certain_response_end_at_a_millionth(compared):
    """log p is taken as -1e-6 there: its log-odds are log(1e6) against log(e^-2 / (1 - e^-2)) of the other."""
    policy = torch.tensor([[0.0, -2.0]], dtype=torch.float64)
    output = ORPO(0.5).output(policy, REFERENCE[:0], compared(torch.tensor([[[False, True], [False, False]]])))
    h = (-1e-6 - math.log(-math.expm1(-1e-6))) - (-2 - math.log(1 - math.exp(-2)))
    assert float(output.losses[0]) == pytest.approx(0.5 * math.log1p(math.exp(-h)), rel=1e-8)


def test_robust_dpo_is_unbiased(compared):
    """With a share e of labels flipped its mean over labels is DPO's loss on the true ones."""
    e, beta = 0.2, 0.3
    better = torch.tensor([[[False, True], [False, False]]])
    groups = compared(better)
    policy, reference = torch.tensor([[-3.0, -7.0]]), torch.zeros(1, 1, 2)
    true = RobustDPO(beta, e).output(policy, reference, groups).losses
    flipped = RobustDPO(beta, e).output(policy, reference, replace(groups, better=better.transpose(1, 2))).losses
    torch.testing.assert_close((1 - e) * true + e * flipped, DPO(beta).output(policy, reference, groups).losses)
