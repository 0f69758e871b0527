"""Every registered objective keeps to the protocol: a new one is tested by being registered.

Its numbers are tested in `test_formulas.py`, against the formula written out.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.objectives import (
    DDORM,
    DPO,
    IPO,
    OBJECTIVES,
    SFT,
    BradleyTerry,
    FittedObjective,
    Groups,
    MultiReference,
    Needs,
    Objective,
    PreferenceHead,
)
from penchant.objectives.pairs import pair_metrics

LN2 = math.log(2)
DETACHING = {"rloo", "ddo_rm"}
"""Losses with a part that is detached by definition."""
VARIANTS = (
    DDORM(score="log_prob", standardize="prompt"),
    DDORM(standardize="running"),
    DDORM(score="log_ratio", rewards="wins", kl=0.5, detach_target=False),
    MultiReference(mixture="multi_loss"),
    MultiReference(mixture="multi_loss", weighting="validation_margin", trust_region=None),
    MultiReference(mixture="geometric", weighting="uniform", normalize="mean"),
    MultiReference(weighting="sliding_window"),
    MultiReference(weighting="thompson"),
    IPO(log_ratio="sum"),
    PreferenceHead("contrastive"),
    BradleyTerry(0.1),
)
"""Methods whose options take another way through their tables than the defaults do."""


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


def full_case(objective: Objective, g: int, k: int, seed: int, size: float = 50.0):
    """A case with all that any objective may need: scores, labels, a head's rewards, a mismatched last candidate."""
    policy, reference, groups = random_case(g, k, references(objective), seed)
    groups = dataclasses.replace(
        groups,
        scores=torch.randn(g, k),
        scored=torch.ones(g, k, dtype=torch.bool),
        labels=torch.randint(0, 2, (g, k)) * 2 - 1,
        rewards=torch.randn(g, k, dtype=torch.float64) if objective.needs.head else None,
    )
    if objective.needs.mismatched:
        mask = torch.ones(g, k, dtype=torch.bool)
        mask[:, -1] = False
        pairs = mask[:, :, None] & mask[:, None, :]
        groups = dataclasses.replace(
            groups, mask=mask, mismatched=~mask, better=groups.better & pairs, labels=groups.labels * mask
        )
    return policy * size / 50, reference * size / 50, groups


def references(objective: Objective) -> int:
    return 3 if objective.needs.many_references else objective.needs.references


def state_of(objective: Objective, reference, groups):
    state = objective.initial_state(0)
    return objective.fit(reference, groups, state) if isinstance(objective, FittedObjective) else state


def evaluate(objective: Objective, case):
    policy, reference, groups = case
    return objective.evaluate(policy, reference, groups, state_of(objective, reference, groups))


def differentiated(objective: Objective, case):
    """The tensor an objective learns through: the head's rewards where it has one, else the model's own."""
    return case[2].rewards if objective.needs.head else case[0]


def reordered(groups: Groups, g: torch.Tensor, k: torch.Tensor) -> Groups:
    def turn(name, value):
        if value is None:
            return None
        return value[g] if name == "weights" else value[g][:, k][:, :, k] if name == "better" else value[g][:, k]

    return Groups(**{name: turn(name, value) for name, value in vars(groups).items()})


@pytest.fixture(params=sorted(OBJECTIVES), scope="module")
def objective(request) -> Objective:
    return OBJECTIVES[request.param]()


class TestEveryObjective:
    def test_follows_the_protocol(self, objective):
        assert isinstance(objective, Objective)
        assert OBJECTIVES[objective.name] is type(objective)
        assert isinstance(objective.needs, Needs)
        assert dataclasses.is_dataclass(objective)
        assert type(objective).__dataclass_params__.frozen
        assert dataclasses.replace(objective) == objective

    def test_names_its_source(self, objective):
        assert "arXiv" in type(objective).__doc__ + sys.modules[type(objective).__module__].__doc__
        assert "Differs from" in type(objective).__doc__

    @pytest.mark.parametrize("k", [2, 5, 16])
    def test_gradient_by_finite_differences(self, objective, k):
        if objective.name in DETACHING:
            pytest.skip("a part of this loss is detached by definition; its own test holds that part fixed")
        case = full_case(objective, 3, k, 0, size=5.0)
        policy, reference, groups = case
        model_output = differentiated(objective, case).requires_grad_()
        state = state_of(objective, reference, groups)
        # Candidates outside the mask may enter through a detached statistic only (KTO's z).
        mask, constant = groups.mask, model_output.detach().clone()

        def loss(values):
            masked_values = torch.where(mask, values, constant)
            new_groups = dataclasses.replace(groups, rewards=masked_values) if objective.needs.head else groups
            new_policy = policy if objective.needs.head else masked_values
            return objective.evaluate(new_policy, reference, new_groups, state).loss.total

        assert torch.autograd.gradcheck(loss, (model_output,))

    def test_masked_slots_change_nothing(self, objective):
        check_masked_slots(objective)

    def test_candidates_without_a_score_change_nothing(self, objective):
        """A candidate without a score, in no pair: the rest learns as if it were not there, whatever it holds."""
        if not objective.needs.scores:
            pytest.skip("it learns from no scores")
        policy, reference, groups = full_case(objective, 4, 3, 8)
        groups.better[:, 2] = groups.better[:, :, 2] = groups.scored[:, 2] = False
        groups.scores[:, 2] = policy[:, 2] = reference[..., 2] = math.nan
        policy.requires_grad_()
        two = reordered(groups, torch.arange(4), torch.arange(2))
        output = evaluate(objective, (policy, reference, groups))
        expected = evaluate(objective, (policy[:, :2], reference[..., :2], two))
        torch.testing.assert_close(output.losses, expected.losses)
        torch.testing.assert_close(output.weights, expected.weights)
        for name, value in expected.metrics.items():
            torch.testing.assert_close(output.metrics[name].total, value.total)
            torch.testing.assert_close(output.metrics[name].count, value.count)
        gradient, of_two = (torch.autograd.grad(o.loss.total, policy, retain_graph=True)[0] for o in (output, expected))
        torch.testing.assert_close(gradient, of_two)
        assert (gradient[:, 2] == 0).all()

    @given(seed=st.integers(0, 1000), k=st.sampled_from([2, 4]))
    @settings(max_examples=20, deadline=None)
    def test_order_of_groups_and_candidates_changes_nothing(self, objective, seed, k):
        case = full_case(objective, 5, k, seed)
        policy, reference, groups = case
        g, c = torch.randperm(5), torch.randperm(k)
        reordered_case = policy[g][:, c], reference[:, g][..., c], reordered(groups, g, c)
        one, two = evaluate(objective, case), evaluate(objective, reordered_case)
        torch.testing.assert_close(two.losses, one.losses[g])
        torch.testing.assert_close(two.weights, one.weights[g])
        for name, value in one.metrics.items():
            torch.testing.assert_close(two.metrics[name].total, value.total)
        # In training too, but for beta-DPO's draw, which follows the place of a pair in the batch.
        method = dataclasses.replace(objective, keep=1.0) if objective.name == "beta_dpo" else objective
        output, _ = method(policy, reference, groups, state_of(method, reference, groups))
        reordered_output, _ = method(*reordered_case, state_of(method, reordered_case[1], reordered_case[2]))
        torch.testing.assert_close(reordered_output.losses, output.losses[g])
        torch.testing.assert_close(reordered_output.loss.total, output.loss.total)

    def test_shards_add_up(self, objective):
        if objective.coupled:
            pytest.skip("its loss is of the whole batch")
        policy, reference, groups = full_case(objective, 6, 4, 2)
        state = state_of(objective, reference, groups)
        whole, _ = objective(policy, reference, groups, state)
        parts = []
        for part in (slice(0, 1), slice(1, 6)):
            shard = Groups(**{name: None if value is None else value[part] for name, value in vars(groups).items()})
            parts.append(objective(policy[part], reference[:, part], shard, state)[0])
        for name, value in {"loss": whole.loss, **whole.metrics}.items():
            sums = [{"loss": p.loss, **p.metrics}[name] for p in parts]
            torch.testing.assert_close(sum(s.total for s in sums), value.total)
            torch.testing.assert_close(sum(s.count for s in sums), value.count)

    @pytest.mark.parametrize("size", [500.0, -500.0, 1e4])
    def test_extreme_log_ratios_are_finite(self, objective, size):
        g, k = 2, 3
        policy, reference, groups = full_case(objective, g, k, 4)
        policy = torch.zeros(g, k)
        policy[:, 0] = size / getattr(objective, "beta", 0.1)
        rewards = torch.tensor([[size, 0.0, -size]] * g) if objective.needs.head else None
        groups = dataclasses.replace(groups, better=groups.better | ranked(g, k), rewards=rewards)
        if objective.needs.mismatched:
            groups = dataclasses.replace(groups, better=groups.better & groups.mask[:, :, None] & groups.mask[:, None])
        model_output = differentiated(objective, (policy, None, groups)).requires_grad_()
        reference = torch.zeros(reference.shape)
        state = state_of(objective, reference, groups)
        output, _ = objective(policy, reference, groups, state)
        (gradient,) = torch.autograd.grad(output.loss.total, model_output)
        assert torch.isfinite(output.losses).all()
        assert torch.isfinite(gradient).all()

    def test_groups_without_preferences_or_labels_have_no_weight(self, objective):
        """Groups without preferences, scores and labels: methods of preferences give them no weight; nothing is NaN."""
        groups = facts(torch.zeros(2, 3, 3, dtype=torch.bool))
        groups = dataclasses.replace(
            groups,
            mismatched=torch.zeros(2, 3, dtype=torch.bool),
            rewards=torch.zeros(2, 3, requires_grad=True) if objective.needs.head else None,
        )
        policy = torch.zeros(2, 3, requires_grad=True)
        reference = torch.zeros(references(objective), 2, 3)
        output, _ = objective(policy, reference, groups, state_of(objective, reference, groups))
        assert torch.isfinite(output.loss.total)
        assert (output.losses[output.weights == 0] == 0).all()
        assert all(torch.isfinite(value.total) for value in output.metrics.values())
        learns_of_worth = objective.needs.pairs or objective.needs.scores or objective.needs.labels
        if learns_of_worth and objective.name != "weighted_sum":
            assert (output.weights == 0).all()

    def test_one_candidate_is_no_comparison(self, objective):
        policy, reference, groups = full_case(objective, 2, 1, 5)
        output, _ = objective(policy, reference, groups, state_of(objective, reference, groups))
        assert torch.isfinite(output.loss.total)
        if objective.needs.pairs and objective.name != "weighted_sum":
            assert (output.weights == 0).all()

    def test_evaluation_never_changes_the_state(self, objective):
        policy, reference, groups = full_case(objective, 3, 2, 3)
        state = dict(state_of(objective, reference, groups))
        old_state = {name: value.clone() for name, value in state.items()}
        output = objective.evaluate(policy, reference, groups, state)
        repeated_output = objective.evaluate(policy, reference, groups, state)
        assert state.keys() == old_state.keys()
        assert all(torch.equal(state[name], old_state[name]) for name in old_state)
        torch.testing.assert_close(output.losses, repeated_output.losses, rtol=0, atol=0)

    def test_the_same_state_gives_the_same_step(self, objective):
        """A step is a function of its arguments: there is no other state, and no draw from a global generator."""
        policy, reference, groups = full_case(objective, 8, 2, 6)
        state = state_of(objective, reference, groups)
        torch.manual_seed(1)
        output, new_state = objective(policy, reference, groups, state)
        torch.manual_seed(2)
        repeated_output, repeated_state = objective(policy, reference, groups, state)
        torch.testing.assert_close(output.losses, repeated_output.losses, rtol=0, atol=0)
        assert new_state.keys() == repeated_state.keys() == state.keys()
        assert all(torch.equal(new_state[name], repeated_state[name]) for name in new_state)
        assert all(new_state[name].shape == state[name].shape for name in state)
        assert all(new_state[name].dtype == state[name].dtype for name in state)

    def test_metrics_carry_no_graph(self, objective):
        """Nor does the state of a training step: it would keep every batch's graph alive."""
        policy, reference, groups = full_case(objective, 3, 3, 7)
        if objective.needs.head:
            groups.rewards.requires_grad_()
        policy.requires_grad_()
        state = state_of(objective, reference, groups)
        trained, new_state = objective(policy, reference, groups, state)
        for output in (trained, objective.evaluate(policy, reference, groups, state)):
            assert not any(v.total.requires_grad or v.count.requires_grad for v in output.metrics.values())
            assert not output.weights.requires_grad
            assert output.losses.requires_grad
        assert not any(value.requires_grad for value in new_state.values())


@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
def test_masked_slots_change_nothing_in_a_variant(variant):
    check_masked_slots(variant)


def check_masked_slots(objective: Objective) -> None:
    """NaN in slots without a candidate changes no loss, no metric and no state, and has a gradient of 0."""
    policy, reference, groups = full_case(objective, 4, 3, 1)

    def widen(value, filled):
        wide = torch.full((*value.shape[:-1], 5), filled, dtype=value.dtype)
        wide[..., :3] = value
        return wide

    better = torch.zeros(4, 5, 5, dtype=torch.bool)
    better[:, :3, :3] = groups.better
    names = ("mask", "tokens", "scored", "labels")
    padded = dataclasses.replace(
        groups,
        better=better,
        scores=widen(groups.scores, math.nan),
        mismatched=None if groups.mismatched is None else widen(groups.mismatched, False),
        rewards=None if groups.rewards is None else widen(groups.rewards, math.nan).requires_grad_(),
        **{name: widen(getattr(groups, name), 0) for name in names},
    )
    wide = widen(policy, math.nan).requires_grad_()
    wide_reference = widen(reference, math.nan)
    # The state is that of the table without padding: a fit may not see padding either.
    state, plain_state = state_of(objective, wide_reference, padded), state_of(objective, reference, groups)
    trained, new_state = objective(wide, wide_reference, padded, state)
    plainly, plain_new_state = objective(policy, reference, groups, plain_state)
    for padded_state, plain_one in ((state, plain_state), (new_state, plain_new_state)):
        assert padded_state.keys() == plain_one.keys()
        assert all(torch.allclose(padded_state[name], plain_one[name]) for name in plain_one)
    outputs = (
        (trained, plainly),
        (
            objective.evaluate(wide, wide_reference, padded, state),
            objective.evaluate(policy, reference, groups, plain_state),
        ),
    )
    for output, plain in outputs:
        torch.testing.assert_close(output.losses.detach(), plain.losses)
        torch.testing.assert_close(output.weights, plain.weights)
        assert output.metrics.keys() == plain.metrics.keys()
        for name, value in plain.metrics.items():
            torch.testing.assert_close(output.metrics[name].total, value.total)
            torch.testing.assert_close(output.metrics[name].count, value.count)
        (gradient,) = torch.autograd.grad(output.loss.total, differentiated(objective, (wide, None, padded)))
        assert torch.isfinite(gradient).all()
        assert (gradient[:, 3:] == 0).all()
        assert (gradient[:, :2] != 0).any()


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
        rewards = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 3.0], [4.0, 1.0]])
        metrics = pair_metrics(rewards, rewards - 1, facts(ranked(4, 2)))
        means = {name: float(value.total / value.count) for name, value in metrics.items()}
        assert means == pytest.approx(
            {
                "rewards/chosen": 7 / 4,
                "rewards/rejected": 6 / 4,
                "rewards/margins": 1 / 4,
                "rewards/accuracies": 2 / 4,
                "rewards/ties": 1 / 4,
                "logps/chosen": 3 / 4,
                "logps/rejected": 2 / 4,
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
