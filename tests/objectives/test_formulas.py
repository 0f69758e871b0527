"""Every method against its formula, written out in plain Python numbers: no tensor, nothing of ours.

A case is G groups of K candidates, some with fewer, with partial preferences, scores, labels and weights.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from penchant.objectives import (
    CDPO,
    DDORM,
    DPO,
    IPO,
    KTO,
    ORPO,
    RLOO,
    RPO,
    SDPO,
    SFT,
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

G = 6


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def nls(x: float) -> float:
    """-log sigma(x)."""
    return softplus(-x)


def logsumexp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


class Case:
    """Tensors for the method, the same numbers in plain lists for the oracle."""

    def __init__(self, k: int, r: int, seed: int) -> None:
        torch.manual_seed(seed)
        mask = torch.ones(G, k, dtype=torch.bool)
        if k > 2:
            mask[1, -1] = False
            mask[2, 1] = False
        ranked = torch.rand(G, k).argsort(1)
        better = (ranked[:, :, None] < ranked[:, None, :]) & (torch.rand(G, k, k) < 0.8)
        better &= mask[:, :, None] & mask[:, None, :]
        self.policy = -torch.rand(G, k, dtype=torch.float64) * 40 - 0.1
        self.reference = -torch.rand(r, G, k, dtype=torch.float64) * 40 - 0.1
        self.groups = Groups(
            mask=mask,
            tokens=torch.randint(1, 30, (G, k)) * mask,
            better=better,
            scores=torch.randn(G, k),
            scored=mask & (torch.rand(G, k) < 0.9),
            labels=torch.randint(-1, 2, (G, k)) * mask,
            weights=torch.rand(G, dtype=torch.float64) + 0.5,
            mismatched=torch.zeros(G, k, dtype=torch.bool),
            rewards=torch.randn(G, k, dtype=torch.float64) * 2,
        )

    def pairs(self, g: int) -> list[tuple[int, int]]:
        k = range(self.policy.shape[1])
        return [(i, j) for i, j in itertools.product(k, k) if self.groups.better[g, i, j]]

    def candidates(self, g: int) -> list[int]:
        return [i for i in range(self.policy.shape[1]) if self.groups.mask[g, i]]

    def p(self, g: int, i: int) -> float:
        return float(self.policy[g, i])

    def n(self, g: int, i: int) -> int:
        return int(self.groups.tokens[g, i])

    def delta(self, g: int, i: int, k: int = 0) -> float:
        return self.p(g, i) - float(self.reference[k, g, i])

    def reward(self, g: int, i: int) -> float:
        return float(self.groups.rewards[g, i])

    def score(self, g: int, i: int) -> float:
        return float(self.groups.scores[g, i])

    def beaten(self, g: int, i: int) -> list[int]:
        return [j for a, j in self.pairs(g) if a == i]


def over_pairs(term):
    """A group's loss: the mean of a term over its preferred pairs; its weight counts where it has any."""

    def oracle(case: Case, g: int) -> tuple[float, float]:
        terms = [term(case, g, i, j) for i, j in case.pairs(g)]
        if not terms:
            return 0.0, 0.0
        return sum(terms) / len(terms), float(case.groups.weights[g])

    return oracle


def rewards_of_pairs(form):
    """`over_pairs` for a head or a reward model, whose numbers are the case's rewards."""
    return over_pairs(lambda c, g, w, b: form(c.reward(g, w), c.reward(g, b)))


def h(case: Case, g: int, w: int, b: int) -> float:
    return case.delta(g, w) - case.delta(g, b)


def mean_h(case: Case, g: int, w: int, b: int) -> float:
    return case.delta(g, w) / case.n(g, w) - case.delta(g, b) / case.n(g, b)


def log_odds(p: float) -> float:
    return p - math.log1p(-math.exp(p))


def orpo_term(case: Case, g: int, w: int, b: int) -> float:
    mean = [case.p(g, i) / case.n(g, i) for i in (w, b)]
    return -mean[0] + 0.3 * nls(log_odds(mean[0]) - log_odds(mean[1]))


def ranking(value):
    def oracle(case: Case, g: int) -> tuple[float, float]:
        terms = []
        for i in case.candidates(g):
            beaten = case.beaten(g, i)
            if beaten:
                terms.append(logsumexp([value(case, g, j) for j in [i, *beaten]]) - value(case, g, i))
        return sum(terms), float(case.groups.weights[g]) if terms else 0.0

    return oracle


def s_dpo(case: Case, g: int) -> tuple[float, float]:
    pairs = case.pairs(g)
    positives = [i for i in case.candidates(g) if case.beaten(g, i) and not any(j == i for _, j in pairs)]
    terms = [
        softplus(logsumexp([0.7 * (case.delta(g, d) - case.delta(g, i)) for d in case.beaten(g, i)])) for i in positives
    ]
    return (sum(terms) / len(terms), float(case.groups.weights[g])) if terms else (0.0, 0.0)


def kto(case: Case, g: int) -> tuple[float, float]:
    borrowed = [(a, i) for a in range(G) for i in range(case.policy.shape[1]) if case.groups.mismatched[a, i]]
    z = max(0.0, sum(case.delta(a, i) for a, i in borrowed) / max(1, len(borrowed)))
    terms = []
    for i in case.candidates(g):
        label = int(case.groups.labels[g, i])
        if label > 0:
            terms.append(1.5 * (1 - 1 / (1 + math.exp(-0.2 * (case.delta(g, i) - z)))))
        if label < 0:
            terms.append(0.5 * (1 - 1 / (1 + math.exp(-0.2 * (z - case.delta(g, i))))))
    return (sum(terms) / len(terms), float(case.groups.weights[g]) * len(terms)) if terms else (0.0, 0.0)


def sft(case: Case, g: int) -> tuple[float, float]:
    best = [
        i
        for i in case.candidates(g)
        if not any(j == i for _, j in case.pairs(g)) and int(case.groups.labels[g, i]) >= 0
    ]
    tokens = sum(case.n(g, i) for i in best)
    return (-sum(case.p(g, i) for i in best) / tokens if tokens else 0.0), float(case.groups.weights[g]) * tokens


def ddo_rm(case: Case, g: int) -> tuple[float, float]:
    scored = [i for i in case.candidates(g) if case.groups.scored[g, i]]
    if len(scored) < 2:
        return 0.0, 0.0
    s = {i: case.p(g, i) / case.n(g, i) for i in scored}
    norm = logsumexp([s[i] / 0.5 for i in scored])
    p = {i: math.exp(s[i] / 0.5 - norm) for i in scored}
    expected = sum(p[i] * case.score(g, i) for i in scored)
    q_logits = {i: (s[i] + 2.0 * (case.score(g, i) - expected)) / 0.5 for i in scored}
    q_norm = logsumexp(list(q_logits.values()))
    return -sum(math.exp(q_logits[i] - q_norm) * (s[i] / 0.5 - norm) for i in scored), float(case.groups.weights[g])


def rloo(case: Case, g: int) -> tuple[float, float]:
    scored = [i for i in case.candidates(g) if case.groups.scored[g, i]]
    if len(scored) < 2:
        return 0.0, 0.0
    worth = {i: case.score(g, i) - 0.05 * case.delta(g, i) for i in scored}
    advantage = {i: worth[i] - sum(worth[j] for j in scored if j != i) / (len(scored) - 1) for i in scored}
    return -sum(advantage[i] * case.p(g, i) for i in scored) / len(scored), float(case.groups.weights[g])


def regression(case: Case, g: int) -> tuple[float, float]:
    scored = [i for i in case.candidates(g) if case.groups.scored[g, i]]
    terms = [(case.reward(g, i) - case.score(g, i)) ** 2 for i in scored]
    return (sum(terms) / len(terms), float(case.groups.weights[g])) if terms else (0.0, 0.0)


E = 0.2
METHODS = {
    "dpo": (DPO(beta=0.3), over_pairs(lambda *a: nls(0.3 * h(*a)))),
    "cdpo": (CDPO(0.3, E), over_pairs(lambda *a: (1 - E) * nls(0.3 * h(*a)) + E * nls(-0.3 * h(*a)))),
    "robust": (
        RobustDPO(0.3, E),
        over_pairs(lambda *a: ((1 - E) * nls(0.3 * h(*a)) - E * nls(-0.3 * h(*a))) / (1 - 2 * E)),
    ),
    "ipo of means": (IPO(0.2), over_pairs(lambda *a: (mean_h(*a) - 1 / 0.4) ** 2)),
    "ipo of sums": (IPO(0.2, "sum"), over_pairs(lambda *a: (h(*a) - 1 / 0.4) ** 2)),
    "hinge": (Hinge(0.3), over_pairs(lambda *a: max(0.0, 1 - 0.3 * h(*a)))),
    "simpo": (
        SimPO(2.5, 0.8),
        over_pairs(lambda c, g, w, b: nls(2.5 * (c.p(g, w) / c.n(g, w) - c.p(g, b) / c.n(g, b)) - 0.8)),
    ),
    "orpo": (ORPO(0.3), over_pairs(orpo_term)),
    "rpo": (RPO(0.3, 0.6), over_pairs(lambda c, g, w, b: nls(0.3 * h(c, g, w, b)) - 0.6 * c.p(g, w) / c.n(g, w))),
    "length-normalised": (LengthNormalizedDPO(4.0), over_pairs(lambda *a: nls(4.0 * mean_h(*a)))),
    "plackett-luce": (PlackettLuce(0.3), ranking(lambda c, g, i: 0.3 * c.delta(g, i))),
    "s-dpo": (SDPO(0.7), s_dpo),
    "kto": (KTO(0.2, 1.5, 0.5), kto),
    "sft": (SFT(), sft),
    "ddo-rm": (DDORM(eta=2.0, tau=0.5), ddo_rm),
    "rloo": (RLOO(0.05), rloo),
    "head, separable": (
        PreferenceHead(label_smoothing=E),
        rewards_of_pairs(lambda w, b: (1 - E) * nls(w) + E * nls(-w) + (1 - E) * nls(-b) + E * nls(b)),
    ),
    "head, contrastive": (
        PreferenceHead("contrastive", E),
        rewards_of_pairs(lambda w, b: (1 - E) * nls(w - b) + E * nls(b - w)),
    ),
}
REWARD_MODELS = {
    "bradley-terry": (BradleyTerry(0.01), rewards_of_pairs(lambda w, b: nls(w - b) + 0.01 * (w + b) ** 2)),
    "plackett-luce reward": (PlackettLuceReward(), ranking(lambda c, g, i: c.reward(g, i))),
    "regression": (RewardRegression(), regression),
}


@pytest.mark.parametrize("k", [1, 2, 4, 16])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [*METHODS, *REWARD_MODELS])
def test_equals_the_formula(name, k, seed):
    objective, oracle = {**METHODS, **REWARD_MODELS}[name]
    case = Case(k, objective.needs.references, seed)
    if objective.needs.mismatched and k > 1:
        mask = case.groups.mask.clone()
        mask[:, -1] = False
        both = mask[:, :, None] & mask[:, None, :]
        case.groups = replace(
            case.groups,
            mismatched=~mask & case.groups.mask,
            mask=mask,
            better=case.groups.better & both,
            labels=case.groups.labels * mask,
        )
    model_output = case.groups.rewards if name in REWARD_MODELS else case.policy
    output = objective.evaluate(model_output, case.reference, case.groups, objective.initial_state(0))
    for g in range(G):
        loss, weight = oracle(case, g)
        assert float(output.losses[g]) == pytest.approx(loss, rel=1e-10, abs=1e-12), g
        assert float(output.weights[g]) == pytest.approx(weight, rel=1e-12), g


class TestAtTheReference:
    """Closed forms where the policy is the reference (or all rewards are equal)."""

    @pytest.mark.parametrize(
        ("objective", "value"),
        [
            (DPO(), math.log(2)),
            (CDPO(), math.log(2)),
            (RobustDPO(), math.log(2)),
            (IPO(0.2), 1 / (4 * 0.2**2)),
            (Hinge(), 1.0),
            (LengthNormalizedDPO(), math.log(2)),
            (KTO(desirable_weight=1.0, undesirable_weight=1.0), 0.5),
            (SDPO(), math.log(4)),
            (PlackettLuce(), math.log(24)),
            (MultiReference(weighting="uniform", trust_region=None), math.log(2)),
            (BetaDPO(), math.log(2)),
        ],
        ids=lambda value: getattr(value, "name", None),
    )
    def test_value(self, objective, value):
        k = 4 if objective.name in ("s_dpo", "plackett_luce") else 2
        case = Case(k, 1, 0)
        better = torch.ones(k, k, dtype=torch.bool).triu(1).expand(G, k, k)
        if objective.name == "s_dpo":
            better = better & (torch.arange(k) == 0)[:, None]
        whole = torch.ones(G, k, dtype=torch.bool)
        groups = replace(case.groups, better=better, mask=whole, labels=torch.ones(G, k, dtype=torch.int64))
        output, _ = objective(case.policy, case.policy[None], groups, objective.initial_state(0))
        losses = output.losses[output.weights > 0]
        torch.testing.assert_close(losses, torch.full_like(losses, value))
        assert len(losses) > 0

    def test_simpo_of_equal_means(self):
        case = Case(2, 0, 0)
        better = torch.tensor([[False, True], [False, False]]).expand(G, 2, 2)
        groups = replace(case.groups, better=better, tokens=torch.full((G, 2), 5))
        output = SimPO(gamma=0.7).output(torch.full((G, 2), -8.0), case.reference, groups)
        torch.testing.assert_close(output.losses, torch.full((G,), softplus(0.7)))

    @pytest.mark.parametrize(("form", "value"), [("separable", 2 * math.log(2)), ("contrastive", math.log(2))])
    def test_heads_of_zero(self, form, value):
        case = Case(2, 0, 0)
        groups = replace(
            case.groups,
            better=torch.tensor([[False, True], [False, False]]).expand(G, 2, 2),
            rewards=torch.zeros(G, 2),
        )
        output = PreferenceHead(form).output(case.policy, case.reference, groups)
        torch.testing.assert_close(output.losses.float(), torch.full((G,), value))


class TestIdentities:
    @pytest.fixture
    def pair(self) -> Case:
        case = Case(2, 1, 1)
        case.groups = replace(case.groups, better=torch.tensor([[False, True], [False, False]]).expand(G, 2, 2).clone())
        return case

    @pytest.mark.parametrize(
        "objective",
        [
            CDPO(0.3, 0.0),
            RobustDPO(0.3, 0.0),
            SDPO(0.3),
            PlackettLuce(0.3),
            BetaDPO(0.3, alpha=0.0, keep=1.0),
            *(MultiReference(0.3, mixture, "uniform") for mixture in ("harmonic", "geometric", "multi_loss")),
            MultiReference(0.3, weighting="thompson"),
            MultiReference(0.3, weighting="adaptive"),
        ],
        ids=lambda o: f"{o.name} {getattr(o, 'mixture', '')}",
    )
    def test_with_one_pair_and_one_reference_it_is_dpo(self, objective, pair):
        state = objective.initial_state(0)
        if hasattr(objective, "fit"):
            state = objective.fit(pair.reference, pair.groups, state)
        pair.policy.requires_grad_()
        ours, _ = objective(pair.policy, pair.reference, pair.groups, state)
        theirs = DPO(0.3).output(pair.policy, pair.reference, pair.groups)
        # The adaptive weight of one reference is |gap| / (|gap| + 1e-6).
        tolerance = 1e-5 if getattr(objective, "weighting", "") == "adaptive" else 1e-12
        torch.testing.assert_close(ours.losses, theirs.losses, rtol=tolerance, atol=0)
        torch.testing.assert_close(ours.weights, theirs.weights)
        gradients = [torch.autograd.grad(output.loss.total, pair.policy)[0] for output in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=10 * tolerance, atol=1e-12)

    def test_contrastive_head_without_smoothing_is_bradley_terry(self, pair):
        head = PreferenceHead("contrastive", 0.0).output(pair.policy, pair.reference, pair.groups)
        model = BradleyTerry().output(pair.groups.rewards, pair.reference, pair.groups)
        torch.testing.assert_close(head.losses, model.losses)

    def test_s_dpo_gradient_weighs_negatives_by_their_softmax(self):
        case = Case(4, 1, 2)
        better = (torch.arange(4) == 0)[:, None] & (torch.arange(4) != 0)[None]
        groups = replace(case.groups, better=better.expand(G, 4, 4), mask=torch.ones(G, 4, dtype=torch.bool))
        case.policy.requires_grad_()
        output = SDPO(0.7).output(case.policy, case.reference, groups)
        (gradient,) = torch.autograd.grad(output.losses.sum(), case.policy)
        rewards = 0.7 * (case.policy - case.reference[0])
        shares = rewards[:, 1:].softmax(1)
        pull = 0.7 * torch.sigmoid(rewards[:, 1:].logsumexp(1) - rewards[:, 0])
        torch.testing.assert_close(gradient[:, 1:], pull[:, None] * shares)
        torch.testing.assert_close(gradient[:, 0], -pull)

    def test_heads_are_least_where_the_paper_says(self):
        e = 0.1
        best = math.log((1 - e) / e)
        minimum = torch.tensor([[best, -best]], dtype=torch.float64, requires_grad=True)
        apart = torch.tensor([[best + 7.0, 7.0]], dtype=torch.float64, requires_grad=True)
        case = Case(2, 0, 0)
        one = Groups(**{name: value[:1] for name, value in vars(case.groups).items()})
        one = replace(one, better=torch.tensor([[[False, True], [False, False]]]))
        for form, rewards in (("separable", minimum), ("contrastive", apart)):
            output = PreferenceHead(form, e).output(case.policy[:1], case.reference, replace(one, rewards=rewards))
            (gradient,) = torch.autograd.grad(output.losses.sum(), rewards)
            assert gradient.abs().max() < 1e-12
            assert float(output.losses[0]) > 0
