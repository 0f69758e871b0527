"""Every registered objective: closed forms, an independent float64 implementation, gradients, invariants."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.objectives import DPO, OBJECTIVES, SFT, Groups, Objective
from penchant.objectives.pairs import pair_metrics

LN2 = math.log(2)


def facts(better: torch.Tensor, mask: torch.Tensor | None = None, weights: torch.Tensor | None = None) -> Groups:
    g, k, _ = better.shape
    mask = torch.ones(g, k, dtype=torch.bool) if mask is None else mask
    return Groups(
        mask=mask,
        tokens=torch.arange(1, g * k + 1).view(g, k) * mask,
        better=better,
        scores=torch.zeros(g, k),
        scored=torch.zeros(g, k, dtype=torch.bool),
        labels=torch.zeros(g, k, dtype=torch.int64),
        weights=torch.ones(g) if weights is None else weights,
    )


def ranked(g: int, k: int) -> torch.Tensor:
    """Candidate i is preferred to every later one."""
    return torch.ones(k, k, dtype=torch.bool).triu(1).expand(g, k, k).clone()


def random_case(g: int, k: int, r: int, seed: int):
    torch.manual_seed(seed)
    policy = -torch.rand(g, k, dtype=torch.float64) * 50
    reference = -torch.rand(r, g, k, dtype=torch.float64) * 50
    better = ranked(g, k) & (torch.rand(g, k, k) < 0.7)
    return policy, reference, facts(better, weights=torch.rand(g).double() + 0.5)


def dpo_oracle(policy, reference, groups, beta, average):
    """The formula in plain Python numbers."""
    losses, weights = [], []
    for g in range(policy.shape[0]):
        terms = []
        for i, j in itertools.product(range(policy.shape[1]), repeat=2):
            if groups.better[g, i, j]:
                h = (policy[g, i] - reference[0, g, i]) - (policy[g, j] - reference[0, g, j])
                terms.append(math.log1p(math.exp(-beta * float(h))))
        losses.append(sum(terms) / len(terms) if terms else 0.0)
        share = len(terms) if average == "pairs" else (1 if terms else 0)
        weights.append(float(groups.weights[g]) * share)
    return losses, weights


@pytest.fixture(params=sorted(OBJECTIVES), scope="module")
def objective(request) -> Objective:
    return OBJECTIVES[request.param]()


class TestEveryObjective:
    def test_follows_the_protocol(self, objective):
        assert isinstance(objective, Objective)
        assert OBJECTIVES[objective.name] is type(objective)
        assert dataclasses.is_dataclass(objective)
        assert type(objective).__dataclass_params__.frozen
        assert type(objective)(**dataclasses.asdict(objective)) == objective

    def test_names_its_source(self, objective):
        assert "arXiv" in type(objective).__doc__ + sys.modules[type(objective).__module__].__doc__
        assert "Differs from" in type(objective).__doc__

    @pytest.mark.parametrize("k", [2, 5, 16])
    def test_gradient_by_finite_differences(self, objective, k):
        policy, reference, groups = random_case(3, k, objective.references, 0)
        policy = (policy / 10).requires_grad_()

        def loss(p):
            output, _ = objective(p, reference / 10, groups, objective.initial_state())
            return output.loss.total

        assert torch.autograd.gradcheck(loss, (policy,))

    def test_masked_slots_change_nothing(self, objective):
        policy, reference, groups = random_case(4, 3, objective.references, 1)
        plain, _ = objective(policy, reference, groups, objective.initial_state())
        wide = torch.full((4, 5), float("nan"), dtype=torch.float64)
        wide[:, :3] = policy
        wide.requires_grad_()
        wide_reference = torch.full((objective.references, 4, 5), float("nan"), dtype=torch.float64)
        wide_reference[..., :3] = reference
        better = torch.zeros(4, 5, 5, dtype=torch.bool)
        better[:, :3, :3] = groups.better
        mask = torch.tensor([True, True, True, False, False]).expand(4, 5)
        padded = dataclasses.replace(
            facts(better, mask, groups.weights), tokens=torch.nn.functional.pad(groups.tokens, (0, 2))
        )
        output, _ = objective(wide, wide_reference, padded, objective.initial_state())
        torch.testing.assert_close(output.losses.detach(), plain.losses)
        for name, value in plain.metrics.items():
            torch.testing.assert_close(output.metrics[name].total.detach(), value.total.detach())
            torch.testing.assert_close(output.metrics[name].count, value.count)
        (gradient,) = torch.autograd.grad(output.loss.total, wide)
        assert torch.isfinite(gradient).all()
        assert (gradient[:, 3:] == 0).all()

    @given(seed=st.integers(0, 1000), k=st.sampled_from([2, 4]))
    @settings(max_examples=20, deadline=None)
    def test_order_of_groups_and_candidates_changes_nothing(self, objective, seed, k):
        policy, reference, groups = random_case(5, k, objective.references, seed)
        one, _ = objective(policy, reference, groups, objective.initial_state())
        g, c = torch.randperm(5), torch.randperm(k)
        turned = Groups(
            **{
                name: value[g] if name == "weights" else value[g][:, c][:, :, c] if name == "better" else value[g][:, c]
                for name, value in vars(groups).items()
            }
        )
        two, _ = objective(policy[g][:, c], reference[:, g][..., c], turned, objective.initial_state())
        torch.testing.assert_close(two.losses, one.losses[g])
        torch.testing.assert_close(two.weights, one.weights[g])
        for name, value in one.metrics.items():
            torch.testing.assert_close(two.metrics[name].total, value.total)

    def test_shards_add_up(self, objective):
        policy, reference, groups = random_case(6, 4, objective.references, 2)
        whole, _ = objective(policy, reference, groups, objective.initial_state())
        parts = []
        for part in (slice(0, 1), slice(1, 6)):
            facts_of = Groups(**{name: value[part] for name, value in vars(groups).items()})
            parts.append(objective(policy[part], reference[:, part], facts_of, objective.initial_state())[0])
        for name, value in {"loss": whole.loss, **whole.metrics}.items():
            sums = [{"loss": p.loss, **p.metrics}[name] for p in parts]
            torch.testing.assert_close(sum(s.total for s in sums), value.total)
            torch.testing.assert_close(sum(s.count for s in sums), value.count)

    @pytest.mark.parametrize("size", [500.0, -500.0, 1e4])
    def test_extreme_log_ratios_are_finite(self, objective, size):
        policy = torch.tensor([[size / 0.1, 0.0]], requires_grad=True)
        reference = torch.zeros(objective.references, 1, 2)
        output, _ = objective(policy, reference, facts(ranked(1, 2)), objective.initial_state())
        (gradient,) = torch.autograd.grad(output.loss.total, policy)
        assert torch.isfinite(output.losses).all()
        assert torch.isfinite(gradient).all()

    def test_all_tied_counts_nothing_or_learns_all(self, objective):
        groups = facts(torch.zeros(2, 3, 3, dtype=torch.bool))
        policy = torch.zeros(2, 3, requires_grad=True)
        reference = torch.zeros(objective.references, 2, 3)
        output, _ = objective(policy, reference, groups, objective.initial_state())
        assert torch.isfinite(output.loss.total)
        assert (output.weights == 0).all() == objective.needs_pairs

    def test_evaluation_without_graph_leaves_the_state(self, objective):
        policy, reference, groups = random_case(3, 2, objective.references, 3)
        before = {name: value.clone() for name, value in objective.initial_state().items()}
        state = objective.initial_state()
        with torch.no_grad():
            objective(policy, reference, groups, state)
        assert all(torch.equal(state[name], before[name]) for name in before)


class TestDPO:
    def test_is_ln2_where_policy_is_the_reference(self):
        policy, _, groups = random_case(3, 2, 0, 0)
        groups = dataclasses.replace(groups, better=ranked(3, 2))
        output, _ = DPO()(policy, policy[None], groups, {})
        torch.testing.assert_close(output.losses, torch.full((3,), LN2, dtype=torch.float64))

    @pytest.mark.parametrize(
        ("h", "beta", "loss"), [(0.0, 0.1, LN2), (10.0, 0.1, 0.3132616875182228), (-20.0, 0.1, 2.1269280110429727)]
    )
    def test_by_hand(self, h, beta, loss):
        output, _ = DPO(beta=beta)(torch.tensor([[h, 0.0]]), torch.zeros(1, 1, 2), facts(ranked(1, 2)), {})
        assert float(output.losses[0]) == pytest.approx(loss, rel=1e-6)

    @pytest.mark.parametrize("k", [1, 2, 4, 5, 16])
    @pytest.mark.parametrize("average", ["groups", "pairs"])
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_the_formula(self, k, average, seed):
        policy, reference, groups = random_case(5, k, 1, seed)
        output, _ = DPO(beta=0.3, average=average)(policy, reference, groups, {})
        losses, weights = dpo_oracle(policy, reference, groups, 0.3, average)
        torch.testing.assert_close(output.losses, torch.tensor(losses, dtype=torch.float64), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(output.weights, torch.tensor(weights, dtype=torch.float64), rtol=1e-12, atol=0)

    def test_gradient_is_beta_sigma(self):
        policy = torch.tensor([[-3.0, -4.0]], dtype=torch.float64, requires_grad=True)
        reference = torch.tensor([[[-5.0, -2.0]]], dtype=torch.float64)
        output, _ = DPO(beta=0.5)(policy, reference, facts(ranked(1, 2)), {})
        (gradient,) = torch.autograd.grad(output.loss.total, policy)
        h = (-3.0 + 5.0) - (-4.0 + 2.0)
        expected = 0.5 / (1 + math.exp(0.5 * h))
        torch.testing.assert_close(gradient, torch.tensor([[-expected, expected]], dtype=torch.float64))

    @pytest.mark.parametrize("wrong", [{"beta": 0}, {"beta": -1.0}, {"average": "rows"}])
    def test_refuses_values_out_of_range(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DPO(**wrong)


class TestPairMetrics:
    def test_by_hand_with_a_tie(self):
        """A tie is not correct, and is counted as a tie: at policy == reference accuracy is 0 and ties are 1."""
        rewards = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 3.0]])
        metrics = pair_metrics(rewards, rewards - 1, facts(ranked(3, 2)))
        means = {name: float(value.total / value.count) for name, value in metrics.items()}
        assert means == pytest.approx(
            {
                "rewards/chosen": 1.0,
                "rewards/rejected": 5 / 3,
                "rewards/margins": -2 / 3,
                "rewards/accuracies": 1 / 3,
                "rewards/ties": 1 / 3,
                "logps/chosen": 0.0,
                "logps/rejected": 2 / 3,
            }
        )

    def test_groups_weigh_the_same_whatever_their_pairs(self):
        rewards = torch.tensor([[1.0, 0.0, -1.0], [0.0, 5.0, 0.0]])
        better = ranked(2, 3)
        better[1] = False
        better[1, 0, 1] = True
        metrics = pair_metrics(rewards, rewards, facts(better))
        assert float(metrics["rewards/margins"].total) == pytest.approx((1 + 2 + 1) / 3 - 5)
        assert float(metrics["rewards/margins"].count) == 2


class TestSFT:
    def test_is_the_mean_over_tokens(self):
        policy = torch.tensor([[-6.0], [-2.0]])
        groups = dataclasses.replace(facts(torch.zeros(2, 1, 1, dtype=torch.bool)), tokens=torch.tensor([[3], [5]]))
        output, _ = SFT()(policy, torch.zeros(0, 2, 1), groups, {})
        assert float(output.loss.total / output.loss.count) == pytest.approx(8 / 8)

    def test_learns_only_the_best(self):
        policy = torch.tensor([[-6.0, -100.0, -100.0]], requires_grad=True)
        output, _ = SFT()(policy, torch.zeros(0, 1, 3), facts(ranked(1, 3)), {})
        (gradient,) = torch.autograd.grad(output.loss.total, policy)
        assert gradient.tolist() == [[-1.0, 0.0, 0.0]]

    def test_leaves_out_what_is_labelled_undesirable(self):
        groups = dataclasses.replace(facts(torch.zeros(2, 1, 1, dtype=torch.bool)), labels=torch.tensor([[1], [-1]]))
        output, _ = SFT()(torch.tensor([[-6.0], [-9.0]]), torch.zeros(0, 2, 1), groups, {})
        assert float(output.loss.total) == pytest.approx(6.0)
