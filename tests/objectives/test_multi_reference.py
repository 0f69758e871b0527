"""Several references: mixtures, the trust region, and every weighting, by hand and as bandits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from penchant.objectives import DPO, Groups, MultiReference, references
from penchant.objectives.references import clip, harmonic

PAIR = torch.tensor([[False, True], [False, False]])


def pairs(n: int, tokens: tuple[int, int] = (4, 5)) -> Groups:
    return Groups(
        mask=torch.ones(n, 2, dtype=torch.bool),
        tokens=torch.tensor([tokens]).expand(n, 2).clone(),
        better=PAIR.expand(n, 2, 2).clone(),
        scores=torch.zeros(n, 2),
        scored=torch.zeros(n, 2, dtype=torch.bool),
        labels=torch.zeros(n, 2, dtype=torch.int64),
        weights=torch.ones(n, dtype=torch.float64),
    )


def case(n: int = 4, r: int = 3, seed: int = 0):
    torch.manual_seed(seed)
    return -torch.rand(n, 2).double() * 30 - 5, -torch.rand(r, n, 2).double() * 30 - 5, pairs(n)


def plain_loss(objective: MultiReference, policy, reference, weights) -> list[float]:
    """The formula with a pair's weights in plain numbers; no trust region."""
    losses = []
    for g in range(policy.shape[0]):
        a = [float(x) for x in (weights[g] if isinstance(weights[0], list) else weights)]
        logs = [[float(x) for x in table[g]] for table in reference]

        def mixed(y, a=a, logs=logs):
            if objective.mixture == "geometric":
                return sum(w * table[y] for w, table in zip(a, logs, strict=True))
            return -math.log(sum(w * math.exp(-table[y]) for w, table in zip(a, logs, strict=True)))

        def pair_loss_of(chosen, rejected, g=g):
            h = (float(policy[g, 0]) - chosen) - (float(policy[g, 1]) - rejected)
            return math.log1p(math.exp(-objective.beta * h))

        if objective.mixture == "multi_loss":
            losses.append(sum(w * pair_loss_of(*table) for w, table in zip(a, logs, strict=True)))
        else:
            losses.append(pair_loss_of(mixed(0), mixed(1)))
    return losses


@pytest.mark.parametrize("mixture", ["harmonic", "geometric", "multi_loss"])
@pytest.mark.parametrize("r", [1, 3])
def test_the_mixtures_by_their_formulas(mixture, r):
    weights = (1.0,) if r == 1 else (0.5, 0.3, 0.2)
    objective = MultiReference(0.2, mixture, "fixed", weights, trust_region=None)
    policy, reference, groups = case(r=r)
    output = objective.evaluate(policy, reference, groups, {})
    assert output.losses.tolist() == pytest.approx(plain_loss(objective, policy, reference, weights), rel=1e-10)


@pytest.mark.parametrize("mixture", ["harmonic", "geometric", "multi_loss"])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_all_weight_on_one_is_dpo_against_it(mixture, k):
    """The right way round: the authors' code for two references has the weights swapped."""
    weights = tuple(float(i == k) for i in range(3))
    policy, reference, groups = case()
    policy.requires_grad_()
    mixed = MultiReference(0.2, mixture, "fixed", weights, trust_region=None).evaluate(policy, reference, groups, {})
    alone = DPO(0.2).output(policy, reference[k : k + 1], groups)
    torch.testing.assert_close(mixed.losses, alone.losses)
    gradients = [torch.autograd.grad(output.loss.total, policy)[0] for output in (mixed, alone)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("mixture", ["harmonic", "geometric", "multi_loss"])
def test_rewards_are_beta_times_what_the_policy_adds_to_the_mixture(mixture):
    weights = (0.5, 0.3, 0.2)
    policy, reference, groups = case()
    output = MultiReference(0.2, mixture, "fixed", weights, trust_region=None).evaluate(policy, reference, groups, {})
    for side, y in (("chosen", 0), ("rejected", 1)):
        rewards = []
        for g in range(4):
            logs = [float(table[g, y]) for table in reference]
            if mixture == "harmonic":
                mixed = -math.log(sum(a * math.exp(-log) for a, log in zip(weights, logs, strict=True)))
            else:
                mixed = sum(a * log for a, log in zip(weights, logs, strict=True))
            rewards.append(0.2 * (float(policy[g, y]) - mixed))
        metric = output.metrics[f"rewards/{side}"]
        assert float(metric.total / metric.count) == pytest.approx(sum(rewards) / 4, rel=1e-10)


def test_a_reference_of_no_weight_is_not_there():
    """However unlikely it holds the response: 0 is no small weight, of which exp(500) would make a large one."""
    tables = torch.tensor([-20.0, -500.0, -21.0]).view(3, 1, 1, 1)
    weights = torch.tensor([0.25, 0.0, 0.75]).view(3, 1, 1, 1)
    expected = -math.log(0.25 * math.exp(20) + 0.75 * math.exp(21))
    assert float(harmonic(tables, weights)) == pytest.approx(expected, rel=1e-6)


def test_adaptive_weights_by_hand():
    """Gaps 1 and 3 give a quarter and three; no gap at all gives each the same."""
    chosen, rejected = torch.tensor([[-4.0, -7.0], [-9.0, -7.0]]), torch.tensor([[-5.0, -7.0], [-6.0, -7.0]])
    weights = references.adaptive(chosen, rejected)
    assert weights[:, 0].tolist() == pytest.approx([0.25, 0.75], rel=1e-5)
    assert weights[:, 1].tolist() == [0.5, 0.5]


def test_adaptive_weights_are_each_pairs_own():
    policy, reference, groups = case()
    gaps = (reference[:, :, 0] - reference[:, :, 1]).abs()
    weights = (gaps / (gaps.sum(0) + 1e-6)).T.tolist()
    objective = MultiReference(0.2, "geometric", "adaptive", trust_region=None)
    output = objective.evaluate(policy, reference, groups, {})
    assert output.losses.tolist() == pytest.approx(plain_loss(objective, policy, reference, weights), rel=1e-10)
    means = [float(output.metrics[f"multi_reference/weight_{k}"].total / 4) for k in range(3)]
    assert means == pytest.approx([sum(row[k] for row in weights) / 4 for k in range(3)])


def test_per_token_mixing_divides_all_by_the_policys_tokens():
    policy, reference, groups = case(r=2)
    objective = MultiReference(2.0, "geometric", "uniform", trust_region=None, normalize="mean")
    output = objective.evaluate(policy, reference, groups, {})
    n = torch.tensor([4.0, 5.0]).double()
    shorter = MultiReference(2.0, "geometric", "uniform", trust_region=None)
    expected = shorter.evaluate(policy / n, reference / n, groups, {})
    torch.testing.assert_close(output.losses, expected.losses)


def authors_loss(policy, primary, second, beta=0.1, eta=0.1):
    """One pair's loss by the steps of the authors' code, in plain numbers: (preferred, rejected) of each model."""
    gaps = [abs(side[0] - side[1]) for side in (primary, second)]
    alpha = gaps[1] / (gaps[1] + gaps[0] + 1e-6)
    sizes = [abs(primary[y] + second[y]) / 2 for y in (0, 1)]
    share = sizes[0] / (sizes[0] + sizes[1])
    mixed = []
    for y, radius in ((0, eta * share), (1, eta * (1 - share))):
        clipped = min(max(second[y], primary[y] * (1 + radius)), primary[y] * (1 - radius))
        largest = max(clipped, primary[y])
        mixture = alpha * math.exp(clipped - largest) + (1 - alpha) * math.exp(primary[y] - largest)
        mixed.append(clipped + primary[y] - largest - math.log(mixture))
    return math.log1p(math.exp(-beta * ((policy[0] - mixed[0]) - (policy[1] - mixed[1]))))


class TestAuthorsWeights:
    @pytest.mark.parametrize("scale", [0.02, 0.3])
    def test_equals_the_authors_code(self, scale):
        """Their default: harmonic, adaptive, clipped to a tenth; the second reference near the primary, and far off."""
        policy, reference, groups = case(n=40, r=2)
        reference[1] = reference[0] * (1 + scale * torch.randn(40, 2).double())
        output = MultiReference(weighting="authors_weights").evaluate(policy, reference, groups, {})
        rows = [[tuple(table[g].tolist()) for table in (policy, *reference)] for g in range(40)]
        assert output.losses.tolist() == pytest.approx([authors_loss(*row) for row in rows], abs=1e-9, rel=0)

    def test_the_harmonic_weights_are_the_adaptive_ones_swapped(self):
        """Gaps 1 and 3: three quarters belong to the second reference, and its 1 / ref gets a quarter."""
        chosen, rejected = torch.tensor([[-4.0], [-9.0]]).double(), torch.tensor([[-5.0], [-6.0]]).double()
        weights = references.authors_weights(chosen, rejected)
        assert weights[:, 0].tolist() == pytest.approx([0.75, 0.25], rel=1e-6)
        assert references.adaptive(chosen, rejected)[:, 0].tolist() == pytest.approx([0.25, 0.75], rel=1e-6)

    def test_their_denominator_has_a_millionth_of_a_nat_more(self):
        """Gaps 1e-6 and 1e-6: alpha is a third, and 1 - alpha takes the rest."""
        chosen = torch.tensor([[-4.0], [-9.0]], dtype=torch.float64)
        rejected = chosen - 1e-6
        assert references.authors_weights(chosen, rejected)[:, 0].tolist() == pytest.approx([1 / 3, 2 / 3], rel=1e-6)

    def test_they_are_of_two_references_and_the_harmonic_mixture(self):
        with pytest.raises(ValueError, match="mixture"):
            MultiReference(mixture="multi_loss", weighting="authors_weights")
        _policy, reference, groups = case(r=3)
        with pytest.raises(ValueError, match="2 references, the run has 3"):
            MultiReference(weighting="authors_weights").fit(reference, groups, {})


def test_adaptive_weights_are_of_sums_where_the_mixture_is_per_token():
    """Gaps of the sums 8 and 4 give 2/3 and 1/3; per token (4 and 5 of them) they would be 4.2 and 1.2."""
    policy, groups = torch.tensor([[-6.0, -9.0]]).double(), pairs(1)
    reference = torch.tensor([[[-4.0, -12.0]], [[-8.0, -12.0]]]).double()
    objective = MultiReference(2.0, "geometric", "adaptive", trust_region=None, normalize="mean")
    output = objective.evaluate(policy, reference, groups, {})
    mixed = [(2 / 3 * primary + 1 / 3 * second) for primary, second in ((-4.0, -8.0), (-12.0, -12.0))]
    h = (-6.0 - mixed[0]) / 4 - (-9.0 - mixed[1]) / 5
    assert float(output.losses[0]) == pytest.approx(math.log1p(math.exp(-2.0 * h)), rel=1e-6)


class TestTrustRegion:
    def test_by_hand(self):
        """l_1 = (-10, -20), l_2 = (-30, -21): b = (-20, -20.5), shares .1 * 20 / 40.5 and .1 * 20.5 / 40.5."""
        tables = torch.tensor([[-10.0, -20.0], [-30.0, -21.0]]).double()
        chosen, rejected = (tables[:, y].view(2, 1, 1, 1) for y in (0, 1))
        (clipped_chosen, other), clipped = clip(chosen, rejected, 0.1, "adaptive")
        assert clipped_chosen.flatten().tolist() == pytest.approx([-10.0, -10.0 * (1 + 0.1 * 20 / 40.5)])
        assert other.flatten().tolist() == pytest.approx([-20.0, -21.0])  # within 20 (1 + .0506) = 21.01
        assert clipped.flatten().tolist() == [False, True]

    def test_a_fixed_radius_and_the_near_side(self):
        tables = torch.tensor([[-10.0, -20.0], [-5.0, -40.0]]).double()
        chosen, rejected = (tables[:, y].view(2, 1, 1, 1) for y in (0, 1))
        (clipped_chosen, other), clipped = clip(chosen, rejected, 0.1, "fixed")
        assert clipped_chosen.flatten().tolist() == pytest.approx([-10.0, -9.0])
        assert other.flatten().tolist() == pytest.approx([-20.0, -22.0])
        assert clipped.flatten().tolist() == [False, True]

    def test_a_radius_of_nothing_is_dpo_on_the_primary(self):
        policy, reference, groups = case()
        tight = MultiReference(0.2, "geometric", "uniform", trust_region=0.0).evaluate(policy, reference, groups, {})
        torch.testing.assert_close(tight.losses, DPO(0.2).output(policy, reference[:1], groups).losses)
        share = tight.metrics["multi_reference/clipped"]
        assert float(share.total / share.count) == pytest.approx(2 / 3)  # all but the primary, of three

    def test_adaptive_weights_are_of_what_was_before_clipping(self):
        policy, reference, groups = case()
        free = MultiReference(weighting="adaptive", trust_region=None).evaluate(policy, reference, groups, {})
        clipped = MultiReference(weighting="adaptive", trust_region=0.01).evaluate(policy, reference, groups, {})
        for k in range(3):
            name = f"multi_reference/weight_{k}"
            torch.testing.assert_close(free.metrics[name].total, clipped.metrics[name].total)
        assert not torch.allclose(free.losses, clipped.losses)


class TestOfflineWeights:
    """Margins of three references over four pairs, nats per token."""

    MARGINS = torch.tensor([[1.0, 1.0, 1.0, -1.0], [0.5, -0.5, 0.5, -0.1], [-1.0, -1.0, 0.2, 0.2]]).double()

    def test_margins_are_length_normalised(self):
        reference = torch.tensor([[[-8.0, -20.0]]]).double()
        assert references.pair_margins(reference, pairs(1)).tolist() == [[pytest.approx(-8 / 4 + 20 / 5)]]

    def test_validation_margin(self):
        assert references.validation_margin(self.MARGINS).tolist() == pytest.approx([0.5 / 0.6, 0.1 / 0.6, 0.0])

    def test_validation_margin_is_uniform_where_all_are_wrong(self):
        assert references.validation_margin(-self.MARGINS.abs()).tolist() == pytest.approx([1 / 3] * 3)

    def test_validation_accuracy(self):
        assert references.validation_accuracy(self.MARGINS, False).tolist() == pytest.approx([3 / 7, 2 / 7, 2 / 7])
        assert references.validation_accuracy(self.MARGINS, True).tolist() == pytest.approx([1.0, 0.0, 0.0])

    def test_a_reference_worse_than_chance_has_no_weight_above_it(self):
        """Accuracies 3/4 and 1/4: a quarter above a half, and nothing, not a quarter below it."""
        margins = torch.tensor([[1.0, 1.0, 1.0, -1.0], [1.0, -1.0, -1.0, -1.0], [1.0, 1.0, -1.0, 1.0]]).double()
        assert references.validation_accuracy(margins, True).tolist() == [0.5, 0.0, 0.5]

    def test_a_reference_that_cannot_tell_two_apart_is_not_right(self):
        """Margins of 0: of four pairs the first reference orders one right, the second two."""
        margins = torch.tensor([[1.0, 0.0, 0.0, -1.0], [0.5, 0.5, -0.1, -0.1]]).double()
        assert references.validation_accuracy(margins, False).tolist() == pytest.approx([1 / 3, 2 / 3])
        assert references.best_single(margins).tolist() == [0.0, 1.0]
        counts = {"successes": torch.zeros(2), "failures": torch.zeros(2), "step": torch.tensor(0)}
        new_counts = references.thompson_after(counts, 0, margins, 1.0)
        assert (new_counts["successes"].tolist(), new_counts["failures"].tolist()) == ([1.0, 0.0], [3.0, 0.0])

    def test_best_single(self):
        assert references.best_single(self.MARGINS).tolist() == [1.0, 0.0, 0.0]

    @pytest.mark.parametrize("name", ["validation_margin", "validation_accuracy", "best_single"])
    def test_they_are_set_once_and_used(self, name):
        policy, reference, groups = case()
        objective = MultiReference(0.2, "geometric", name, trust_region=None)
        state = objective.fit(reference, groups, objective.initial_state(0))
        assert float(state["weights"].sum()) == pytest.approx(1.0)
        output, new_state = objective(policy, reference, groups, state)
        assert torch.equal(new_state["weights"], state["weights"])
        expected = plain_loss(objective, policy, reference, state["weights"].tolist())
        assert output.losses.tolist() == pytest.approx(expected, rel=1e-9)


def margins_like(right: float, n: int, draw: torch.Generator) -> torch.Tensor:
    """Margins [1, n] of a reference that orders a pair right with this probability."""
    correct = torch.rand(n, generator=draw) < right
    return torch.where(correct, 1.0, -1.0).double()[None]


class TestSlidingWindow:
    def test_weights_exclude_the_batch_itself(self):
        objective = MultiReference(0.2, "geometric", "sliding_window", trust_region=None, window=2)
        policy, reference, groups = case()
        state = objective.fit(reference, groups, objective.initial_state(0))
        output, new_state = objective(policy, reference, groups, state)
        expected = plain_loss(objective, policy, reference, [1 / 3] * 3)
        assert output.losses.tolist() == pytest.approx(expected, rel=1e-9)
        assert int(new_state["filled"]) == 1
        means = references.pair_margins(reference, groups).mean(1)
        torch.testing.assert_close(new_state["window"][0], means)
        torch.testing.assert_close(
            references.window_weights(new_state), means.clamp(min=0) / means.clamp(min=0).sum().clamp(min=1e-30)
        )

    def test_it_tracks_a_switch(self):
        draw = torch.Generator().manual_seed(0)
        state = {"window": torch.zeros(20, 2).double(), "filled": torch.tensor(0)}
        for step in range(200):
            good = 0 if step < 100 else 1
            margins = torch.cat([margins_like(0.9 if k == good else 0.5, 8, draw) for k in range(2)])
            state = references.window_after(state, margins)
            if step in (99, 199):
                assert float(references.window_weights(state)[good]) > 0.75

    def test_a_batch_without_a_pair_leaves_it(self):
        state = {"window": torch.ones(3, 2).double(), "filled": torch.tensor(3)}
        assert references.window_after(state, torch.zeros(2, 0)) == state


class TestThompson:
    @pytest.mark.slow
    def test_the_better_reference_gets_the_pulls(self):
        """One of three is right 90 % of the time, the others half: it has 80 % of 500 pulls for 95 of 100 seeds."""
        good = 0
        for seed in range(100):
            draw = torch.Generator().manual_seed(seed)
            counts = torch.zeros(3).double()
            zero = torch.tensor(0)
            state = {"successes": counts, "failures": counts.clone(), "step": zero, "seed": torch.tensor(seed)}
            pulls = 0
            for _ in range(500):
                pulled = references.thompson_draw(state)
                pulls += pulled == 1
                margins = torch.zeros(3, 1).double()
                margins[pulled] = margins_like(0.9 if pulled == 1 else 0.5, 1, draw)
                state = references.thompson_after(state, pulled, margins, 1.0)
            good += pulls >= 400
        assert good >= 95

    def test_the_draw_is_before_the_batch_and_the_same_everywhere(self):
        policy, reference, groups = case()
        objective = MultiReference(weighting="thompson", trust_region=None)
        state = objective.fit(reference, groups, objective.initial_state(7))
        output, new_state = objective(policy, reference, groups, state)
        other, _ = objective(policy - 3, reference.flip(0), groups, state)
        name = [n for n in output.metrics if "weight" in n and float(output.metrics[n].total) > 0]
        assert name == [n for n in other.metrics if "weight" in n and float(other.metrics[n].total) > 0]
        pulled = int(name[0][-1])
        margins = references.pair_margins(reference, groups)[pulled]
        assert float(new_state["successes"][pulled]) == float((margins > 0).sum())
        assert float(new_state["successes"].sum() + new_state["failures"].sum()) == 4
        assert int(new_state["step"]) == 1

    def test_draws_follow_the_posterior(self):
        """Beta(3, 1) against Beta(1, 1): the first is drawn larger with probability 3/4."""
        wins = 0
        for step in range(4000):
            state = {
                "successes": torch.tensor([2.0, 0.0]),
                "failures": torch.zeros(2),
                "step": torch.tensor(step),
                "seed": torch.tensor(0),
            }
            wins += references.thompson_draw(state) == 0
        assert abs(wins / 4000 - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 4000)

    @pytest.mark.parametrize(
        ("seed", "pulled"), [(0, [0, 0, 2, 0, 2, 2, 1, 0, 0, 0, 0, 0]), (5, [2, 0, 1, 2, 0, 0, 2, 1, 2, 1, 0, 0])]
    )
    def test_the_pulls_of_a_seed_stay_the_same(self, seed, pulled):
        """A promise: a run's seed gives the same draws in every release."""
        counts = {
            "successes": torch.tensor([3.0, 1.0, 0.0]).double(),
            "failures": torch.tensor([1.0, 2.0, 0.0]).double(),
        }
        draws = [
            references.thompson_draw({**counts, "seed": torch.tensor(seed), "step": torch.tensor(step)})
            for step in range(12)
        ]
        assert draws == pulled

    def test_evaluation_uses_the_best_posterior_mean(self):
        """Means 13/26, 10/12 and 1/2: the second, though the first was right more often."""
        policy, reference, groups = case()
        state = {
            "successes": torch.tensor([12.0, 9.0, 0.0]).double(),
            "failures": torch.tensor([12.0, 1.0, 0.0]).double(),
            "step": torch.tensor(20),
            "seed": torch.tensor(0),
        }
        output = MultiReference(0.2, weighting="thompson", trust_region=None).evaluate(policy, reference, groups, state)
        torch.testing.assert_close(output.losses, DPO(0.2).output(policy, reference[1:2], groups).losses)

    def test_old_counts_fade(self):
        state = {
            "successes": torch.tensor([8.0, 0.0]).double(),
            "failures": torch.tensor([2.0, 4.0]).double(),
            "step": torch.tensor(0),
            "seed": torch.tensor(0),
        }
        margins = torch.tensor([[0.0] * 5, [1.0, -1.0, -2.0, 3.0, 0.0]]).double()
        new_state = references.thompson_after(state, 1, margins, 0.5)
        assert new_state["successes"].tolist() == [4.0, 2.0]
        assert new_state["failures"].tolist() == [1.0, 5.0]


class TestRefuses:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"weighting": "fixed", "weights": (0.5, 0.4)}, "a sum of 1"),
            ({"weighting": "fixed", "weights": (0.0, 0.0)}, "at least one above 0"),
            ({"weighting": "fixed", "weights": (1.5, -0.5)}, "numbers of at least 0"),
            ({"weighting": "fixed"}, "weights is None"),
            ({"weights": (0.5, 0.5)}, "weights is"),
            ({"weighting": "best"}, "one of uniform, adaptive"),
            ({"mixture": "mean"}, "one of harmonic"),
            ({"window": 0}, "window"),
            ({"discount": 0.0}, "discount"),
            ({"trust_region": -0.1}, "trust_region"),
            ({"beta": 0.0}, "beta"),
        ],
    )
    def test_hyper_parameters(self, fields, message):
        with pytest.raises(ValueError, match=message):
            MultiReference(**fields)

    def test_weights_for_another_number_of_references(self):
        _policy, reference, groups = case(r=3)
        objective = MultiReference(weighting="fixed", weights=(0.5, 0.5))
        with pytest.raises(ValueError, match="2 numbers, the run has 3 references"):
            objective.fit(reference, groups, {})


def test_groups_with_more_candidates_average_their_pairs():
    torch.manual_seed(0)
    policy, reference = -torch.rand(3, 4).double() * 20, -torch.rand(2, 3, 4).double() * 20
    better = torch.ones(4, 4, dtype=torch.bool).triu(1).expand(3, 4, 4)
    groups = replace(
        pairs(3),
        mask=torch.ones(3, 4, dtype=torch.bool),
        tokens=torch.full((3, 4), 5),
        better=better,
        scored=torch.zeros(3, 4, dtype=torch.bool),
    )
    objective = MultiReference(0.2, "geometric", "uniform", trust_region=None)
    mixed = reference.mean(0)
    expected = DPO(0.2).output(policy, mixed[None], groups)
    torch.testing.assert_close(objective.evaluate(policy, reference, groups, {}).losses, expected.losses)


def pair_loss(objective: MultiReference, policy_pair: tuple[float, float], sides: list[tuple[float, float]]) -> float:
    """The loss of one pair in plain numbers: (preferred, other) of the policy, and of each reference."""
    r, beta = len(sides), objective.beta
    if objective.weighting == "adaptive":
        gaps = [abs(w - b) for w, b in sides]
        a = [gap / (sum(gaps) + 1e-6) for gap in gaps]
    else:
        a = list(objective.weights or [1 / r] * r)
    bounded = list(sides)
    if objective.trust_region is not None:
        size = [abs(sum(side[i] for side in sides) / r) for i in (0, 1)]
        share = [objective.trust_region] * 2
        if objective.radius == "adaptive":
            share = [objective.trust_region * s / sum(size) for s in size]
        # Log-probs are negative: 1 + e of one lies below it.
        for k in range(1, r):
            ends = [((1 + e) * sides[0][i], (1 - e) * sides[0][i]) for i, e in enumerate(share)]
            bounded[k] = tuple(min(max(sides[k][i], ends[i][0]), ends[i][1]) for i in (0, 1))

    def nls(x: float) -> float:
        return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))

    def mixed(i: int) -> float:
        if objective.mixture == "geometric":
            return sum(weight * side[i] for weight, side in zip(a, bounded, strict=True))
        terms = [math.log(weight) - side[i] for weight, side in zip(a, bounded, strict=True)]
        return -max(terms) - math.log(sum(math.exp(term - max(terms)) for term in terms))

    if objective.mixture == "multi_loss":
        hs = [(policy_pair[0] - w) - (policy_pair[1] - b) for w, b in bounded]
        return sum(weight * nls(beta * h) for weight, h in zip(a, hs, strict=True))
    return nls(beta * ((policy_pair[0] - mixed(0)) - (policy_pair[1] - mixed(1))))


@pytest.mark.parametrize("k", [1, 2, 4, 16])
@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("mixture", ["harmonic", "geometric", "multi_loss"])
@pytest.mark.parametrize("region", [(None, "adaptive"), (0.1, "adaptive"), (0.1, "fixed")], ids=str)
@pytest.mark.parametrize("weighting", ["uniform", "adaptive", "fixed"])
def test_equals_the_formula_whatever_the_sizes(compared, k, r, mixture, region, weighting):
    """Weights, trust region and mixture together, for any number of candidates and references."""
    torch.manual_seed(k + 31 * r)
    weights = {1: (1.0,), 3: (0.5, 0.2, 0.3)}[r] if weighting == "fixed" else None
    objective = MultiReference(0.2, mixture, weighting, weights, trust_region=region[0], radius=region[1])
    policy = -torch.rand(3, k, dtype=torch.float64) * 40 - 1
    # References near the first and far from it: some are clipped and some are not.
    primary = -torch.rand(1, 3, k, dtype=torch.float64) * 40 - 1
    reference = primary * (1 + torch.randn(r, 3, k, dtype=torch.float64) * 0.08 * (torch.arange(r) > 0)[:, None, None])
    ranked = torch.rand(3, k).argsort(1)
    better = (ranked[:, :, None] < ranked[:, None, :]) & (torch.rand(3, k, k) < 0.8)
    groups = replace(compared(better), tokens=torch.randint(1, 30, (3, k)))
    output = objective.evaluate(policy, reference, groups, {})
    for g in range(3):
        pair_losses = [
            pair_loss(
                objective,
                (float(policy[g, i]), float(policy[g, j])),
                [(float(table[g, i]), float(table[g, j])) for table in reference],
            )
            for i, j in better[g].nonzero().tolist()
        ]
        expected = sum(pair_losses) / len(pair_losses) if pair_losses else 0.0
        assert float(output.losses[g]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        # Each group weighs the same, however many pairs it has.
        assert float(output.weights[g]) == (1.0 if pair_losses else 0.0)


@pytest.mark.parametrize("weighting", ["sliding_window", "thompson", "validation_margin"])
def test_gradient_of_a_training_step_by_finite_differences(weighting):
    """The state changes with the step, and has no part in its gradient."""
    policy, reference, groups = case()
    objective = MultiReference(0.2, "geometric", weighting)
    state = objective.fit(reference, groups, objective.initial_state(3))
    policy = policy.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: objective(p, reference, groups, state)[0].loss.total, (policy,))
