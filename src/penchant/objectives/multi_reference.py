"""Multi-reference DPO (Le et al. 2024, MRPO, arXiv 2405.16388), with the weightings of arXiv 2512.10040."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives import references
from penchant.objectives.base import Groups, Needs, Output, State, Sum, require
from penchant.objectives.pairs import average_pairs, side_metrics

OFFLINE = ("validation_margin", "validation_accuracy", "best_single")
ONLINE = ("sliding_window", "thompson")
WEIGHTINGS = ("uniform", *references.PAIRWISE, *OFFLINE, *ONLINE, "fixed")


@dataclass(frozen=True)
class MultiReference:
    """DPO with log ref replaced by a mixture of R references, l_k = log ref_k, weights a_k >= 0 of sum 1.

    ``harmonic`` (MRPO): ``-logsumexp_k(log a_k - l_k)``, ruled by the least likely reference;
    ``geometric``: ``sum_k a_k l_k``, the optimum of ``E r - beta sum_k a_k KL(pi || ref_k)``; ``multi_loss``:
    ``sum_k a_k L_DPO(h_k)``. With R = 1 each is DPO; all weight on k is DPO on reference k.

    The first reference is the primary: before mixing, every other l_k is clipped to within a share e_y of l_1 (CTRO),
    ``e_y = trust_region |b_y| / (|b_w| + |b_l|)``, b the mean over k.

    Differs from the papers: the forms of the sliding window and of Thompson sampling are ours, after their words.
    Offline weights are fitted to the pairs of `data.reference_held_out`: on the training pairs a reference that was
    trained on them gets nearly all the weight.
    Differs from the authors' code (two references), whose harmonic branch has the weights swapped: the primary's
    ``1 / ref_1`` is multiplied by the weight of the other. Its multi-loss branch is the right way round. ``weighting:
    authors_weights`` gives the numbers of their default: harmonic, adaptive, swapped. Their primary is replaced by the
    policy at each best checkpoint, as ``reference_update: best`` does; without it the primary stays the one that is
    named.

    Attributes:
        beta: strength of the pull towards the mixture, > 0.
        mixture: harmonic, geometric or multi_loss.
        weighting: uniform; adaptive (MRPO's); authors_weights (adaptive as in the authors' code: harmonic, two
            references); validation_margin, validation_accuracy, best_single (once, before training, on
            `data.reference_held_out`); sliding_window, thompson (as it trains); fixed (`weights`).
        weights: of ``fixed``, one for each reference.
        trust_region: e_max, the largest share; 0 clips all to the primary, null does not clip.
        radius: shares by the pair (``adaptive``), or e_max for all (``fixed``).
        normalize: mix summed log-probs (``sum``), or those per token (``mean``), the policy's too.
        window: batches, of ``sliding_window``.
        discount: of old counts at each step, of ``thompson``, in (0, 1].
        above_chance: whether ``validation_accuracy`` weighs by accuracy above a half.
    """

    beta: float = 0.1
    mixture: Literal["harmonic", "geometric", "multi_loss"] = "harmonic"
    weighting: Literal[
        "uniform", "adaptive", "authors_weights", "validation_margin", "validation_accuracy", "best_single",
        "sliding_window", "thompson", "fixed",
    ] = "adaptive"  # fmt: skip
    weights: tuple[float, ...] | None = None
    trust_region: float | None = 0.1
    radius: Literal["adaptive", "fixed"] = "adaptive"
    normalize: Literal["sum", "mean"] = "sum"
    window: int = 50
    discount: float = 1.0
    above_chance: bool = False

    name: ClassVar[str] = "multi_reference"

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")
        mixtures = ("harmonic", "geometric", "multi_loss")
        require(self.mixture in mixtures, "mixture", self.mixture, f"one of {', '.join(mixtures)}")
        require(self.weighting in WEIGHTINGS, "weighting", self.weighting, f"one of {', '.join(WEIGHTINGS)}")
        if self.weighting == "authors_weights":
            require(self.mixture == "harmonic", "mixture", self.mixture, "harmonic with weighting=authors_weights")
        require(self.trust_region is None or self.trust_region >= 0, "trust_region", self.trust_region, "at least 0")
        require(self.radius in ("adaptive", "fixed"), "radius", self.radius, "'adaptive' or 'fixed'")
        require(self.normalize in ("sum", "mean"), "normalize", self.normalize, "'sum' or 'mean'")
        require(self.window >= 1, "window", self.window, "at least 1 batch")
        require(0 < self.discount <= 1, "discount", self.discount, "a number in (0, 1]")
        has_weights = self.weights is not None
        require(
            has_weights == (self.weighting == "fixed"),
            "weights",
            self.weights,
            "numbers with weighting=fixed, and only so",
        )
        if self.weights is not None:
            require(all(a >= 0 for a in self.weights), "weights", self.weights, "numbers of at least 0")
            require(any(a > 0 for a in self.weights), "weights", self.weights, "at least one above 0")
            total = sum(self.weights)
            require(math.isclose(total, 1, abs_tol=1e-6), "weights", self.weights, f"a sum of 1, not {total}")

    @property
    def needs(self) -> Needs:
        return Needs(many_references=True, fitting_pairs=self.weighting in OFFLINE)

    @property
    def coupled(self) -> bool:
        """Whether the state changes, once per optimizer batch."""
        return self.weighting in ONLINE

    def initial_state(self, seed: int) -> State:
        return {"seed": torch.tensor(seed, dtype=torch.int64)} if self.weighting == "thompson" else {}

    def fit(self, reference: Tensor, groups: Groups, state: State) -> State:
        r = reference.shape[0]
        if self.weights is not None and len(self.weights) != r:
            raise ValueError(f"weights has {len(self.weights)} numbers, the run has {r} references")
        if self.weighting == "authors_weights" and r != 2:
            raise ValueError(f"weighting=authors_weights is for 2 references, the run has {r}")
        margins = references.pair_margins(reference.double(), groups)
        match self.weighting:
            case "validation_margin":
                return {"weights": references.validation_margin(margins)}
            case "validation_accuracy":
                return {"weights": references.validation_accuracy(margins, self.above_chance)}
            case "best_single":
                return {"weights": references.best_single(margins)}
            case "sliding_window":
                filled = torch.zeros((), dtype=torch.int64)
                return {"window": torch.zeros(self.window, r, dtype=torch.float64), "filled": filled}
            case "thompson":
                counts = torch.zeros(r, dtype=torch.float64)
                step = torch.zeros((), dtype=torch.int64)
                return {**state, "successes": counts, "failures": counts.clone(), "step": step}
        return state

    def __call__(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> tuple[Output, State]:
        if self.weighting not in ONLINE:
            return self.evaluate(policy, reference, groups, state), state
        margins = references.pair_margins(reference.double(), groups)
        if self.weighting == "sliding_window":
            # The weights are those of the batches before this one.
            return self.evaluate(policy, reference, groups, state), references.window_after(state, margins)
        pulled = references.thompson_draw(state)
        output = self._output(policy, reference, groups, references.one_hot(pulled, reference))
        return output, references.thompson_after(state, pulled, margins, self.discount)

    def evaluate(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> Output:
        if self.weighting in references.PAIRWISE:
            return self._output(policy, reference, groups, None)
        r = reference.shape[0]
        match self.weighting:
            case "uniform":
                weights = reference.new_full((r,), 1 / r)
            case "fixed":
                weights = reference.new_tensor(self.weights)
            case "sliding_window":
                weights = references.window_weights(state)
            case "thompson":
                weights = references.one_hot(references.thompson_best(state), reference)
            case _:
                weights = state["weights"]
        return self._output(policy, reference, groups, weights.to(reference))

    def _output(self, policy: Tensor, reference: Tensor, groups: Groups, weights: Tensor | None) -> Output:
        """The loss with [R] weights, or with each pair's own where there are none."""
        policy_log_probs, chosen, rejected = references.pair_sides(policy, reference, groups, self.normalize)
        sums = references.pair_sides(policy, reference, groups, "sum")[1:]
        if weights is None:
            a = references.PAIRWISE[self.weighting](*sums)
        else:
            a = weights[:, None, None, None].expand_as(chosen)
        clipped = torch.zeros_like(chosen, dtype=torch.bool)
        if self.trust_region is not None:
            (chosen, rejected), clipped = references.clip(chosen, rejected, self.trust_region, self.radius)
        mixed = references.MIXTURES[self.mixture](chosen, a), references.MIXTURES[self.mixture](rejected, a)
        sides = policy_log_probs[:, :, None] - mixed[0], policy_log_probs[:, None, :] - mixed[1]
        if self.mixture == "multi_loss":
            reference_margins = (policy_log_probs[:, :, None] - chosen) - (policy_log_probs[:, None, :] - rejected)
            terms = -(a * logsigmoid(self.beta * reference_margins)).sum(0)
        else:
            terms = -logsigmoid(self.beta * (sides[0] - sides[1]))
        losses, group_weights = average_pairs(terms, groups, "groups")
        metrics = side_metrics(self.beta * sides[0], self.beta * sides[1], policy, groups)
        count = groups.better.sum().to(losses.dtype)
        for k, of_pairs in enumerate(a):
            metrics[f"multi_reference/weight_{k}"] = Sum(of_pairs[groups.better].sum(), count)
        metrics["multi_reference/clipped"] = Sum(clipped[:, groups.better].sum().to(count), count * len(clipped))
        return Output(losses, group_weights, metrics)
