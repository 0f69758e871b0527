"""The choice of a model's scorer: the tree where it is exact, its layers compiled where their numbers are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from penchant.data.tokenized import TokenizedGroup
from penchant.engine.device import float32_products
from penchant.engine.kernels.compiled import NOT_COMPILED, compile_layers, short_reason, undo_compilation
from penchant.engine.padded import PaddedScorer
from penchant.engine.reward_scorers import HeadedScorer, PaddedRewardScorer, TreeRewardScorer
from penchant.engine.scoring import PackedScorer, Scorer, precision
from penchant.engine.tree import TreeScorer
from penchant.engine.tree_check import TreeCheck, is_half, measure_rounding, rounding_note
from penchant.engine.working_weights import WorkingWeights
from penchant.models.multimodal import set_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LanguageScorer = TreeScorer | PaddedScorer
RewardScorer = TreeRewardScorer | PaddedRewardScorer

ScorerType = TypeVar("ScorerType", LanguageScorer, RewardScorer)

CHECK_GROUPS = 8
"""Groups that the check at load may look at; two of them mostly suffice."""

COMPILED_ROUNDINGS = 4.0
"""Largest difference of compiled layers' numbers, as a multiple of the rounding of the layers as they are."""

COMPILED_TOLERANCE = 1e-3
"""The same as a share of the largest number, where products are float32 or TF32."""

COMPILED_GRADIENTS = 0.05
"""Largest difference of the norm of compiled layers' gradients, as a share of the norm."""


@dataclass(frozen=True)
class ScorerChoice(Generic[ScorerType]):
    """The scorer chosen for a model, and notes about it.

    Attributes:
        notice: why it is not the tree, and what that costs; None where it is.
        rounding: largest error of its numbers from float32 on the sample, in nats (rewards: as they are); None in
            float32 and float64, and where it could not be measured.
        half: whether matrix products are rounded to half precision.
    """

    scorer: ScorerType
    notice: str | None
    rounding: float | None = None
    half: bool = False

    @property
    def notes(self) -> list[str]:
        """Lines for people who compare candidates by these numbers."""
        lines: list[str] = [self.notice] if self.notice is not None else []
        if self.half:
            lines.append(rounding_note(self.rounding))
        return lines


def choose_scorer(
    model: PreTrainedModel, sample: Sequence[TokenizedGroup], dtype: str = "float32"
) -> ScorerChoice[LanguageScorer]:
    """The tree where it is exact for this model on a real sample, the padded forward where it is not.

    Args:
        model: any causal language model.
        sample: a few real groups; at least one with a prompt of some length and two candidates tells the most.
        dtype: ``float32``, ``bfloat16`` or ``float16``, of the matrix products, as in `precision`.
    """
    return _choose(model, TreeScorer(model), PaddedScorer(model), sample, dtype)


def choose_reward_scorer(
    model: PreTrainedModel, sample: Sequence[TokenizedGroup], dtype: str = "float32"
) -> ScorerChoice[RewardScorer]:
    """`choose_scorer` for a sequence-classification model, whose one output is the reward."""
    return _choose(model, TreeRewardScorer(model), PaddedRewardScorer(model), sample, dtype)


def _choose(
    model: PreTrainedModel, tree: ScorerType, padded: ScorerType, sample: Sequence[TokenizedGroup], dtype: str
) -> ScorerChoice[ScorerType]:
    half = is_half(model.dtype, dtype)
    check = TreeCheck(model, tree, padded, lambda: precision(model.device, dtype), half)
    implementation = model.config._attn_implementation
    training = model.training
    model.eval()
    try:
        # Not in TF32, in which training may multiply: its rounding is far above the check's tolerance.
        with torch.no_grad(), float32_products("highest"):
            verdict = check.verdict(sample)
    finally:
        model.train(training)
    if verdict.reason is None:
        return ScorerChoice(tree, None, verdict.rounding, half)
    if model._can_set_attn_implementation():
        set_attention(model, implementation)
    return ScorerChoice(
        padded, _notice(model, verdict.reason, _token_ratio(tree, padded, sample)), verdict.rounding, half
    )


def compile_scorer(
    scorer: PackedScorer,
    sample: Sequence[TokenizedGroup],
    dtype: str,
    weights: WorkingWeights,
    rounding: float | None,
    backend: str | Callable[..., Any] = "inductor",
) -> str | None:
    """Compile the layers of a scorer that trains; a notice, and none compiled, where backward or numbers are not right.

    The graphs that are checked are those that train, forward and backward. Gradients are dropped afterwards. A forward
    that does not compile is undone and logged by its layers. A model without trained weights, under a preference head
    alone, is left as it is.

    Args:
        scorer: in training mode.
        sample: groups of the run.
        weights: of the model, as the loop has them.
        rounding: largest error of the scorer's numbers in half precision, in nats; None where it is not known.
        backend: as of `compile_layers`.
    """
    model: Any = scorer.model
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return None
    batch = scorer.collate(sample[:2], 1.0).to(model.device)

    def numbers() -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # Adapters' dropout is the same twice.
            with precision(model.device, dtype), weights.in_place():
                scores = scorer(batch)
                scores.sum().backward()
                weights.add_gradients()
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        return scores.detach(), norm

    plain_scores, plain_norm = numbers()
    compile_layers(model, backend)
    try:
        scores, norm = numbers()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # Of the compiler at the backward; one at the forward is undone there.
        model.zero_grad()
        undo_compilation(model)
        return f"{NOT_COMPILED}: {short_reason(error)}"
    difference = float((scores - plain_scores).abs().max())
    largest = COMPILED_ROUNDINGS * (rounding or 0.0) + COMPILED_TOLERANCE * (1 + float(plain_scores.abs().max()))
    share = abs(float(norm / plain_norm) - 1)
    # Written so that a number that is none fails too.
    if difference <= largest and share <= COMPILED_GRADIENTS:
        return None
    undo_compilation(model)
    return (
        f"{NOT_COMPILED}: compiled they give numbers that differ by {difference:.2g} (nats, or rewards) and gradients "
        f"whose norm differs by {share:.1%}"
    )


def _token_ratio(tree: Scorer, padded: Scorer, sample: Sequence[TokenizedGroup]) -> float:
    """Tokens of padded rows over those of the tree."""
    return sum(map(padded.cost, sample)) / sum(map(tree.cost, sample))


def _notice(model: PreTrainedModel, reason: str, times: float) -> str:
    return (
        f"{type(model).__name__} is run padded, one row a candidate, which computes about {times:.1f} times the tokens "
        f"of the packed tree: the tree is not exact for it ({reason})."
    )


@torch.no_grad()
def head_scorer_notes(
    choice: ScorerChoice[LanguageScorer], scorer: HeadedScorer, sample: Sequence[TokenizedGroup], dtype: str
) -> list[str]:
    """`ScorerChoice.notes` of a model whose preference head's rewards are compared."""
    notes = [] if choice.notice is None else [choice.notice]
    if not choice.half:
        return notes
    batch = scorer.collate(sample[:2], 1.0).to(scorer.model.device)
    training = scorer.training
    scorer.eval()
    rounding = measure_rounding(
        scorer,
        lambda: scorer(batch)[1],
        lambda: precision(scorer.model.device, dtype),
        scorer.model.get_output_embeddings(),
    )
    scorer.train(training)
    return [*notes, rounding_note(rounding)]


def sample_groups(groups: Sequence[TokenizedGroup]) -> list[TokenizedGroup]:
    """Groups for the check at load, in the order of checking: neither trivial nor slow.

    They have middling lengths among the first hundred.
    """
    ordered = sorted(groups[:100], key=lambda group: group.length)
    middle = len(ordered) // 2
    return [*ordered[middle : middle + CHECK_GROUPS], *reversed(ordered[max(0, middle - CHECK_GROUPS) : middle])][
        :CHECK_GROUPS
    ]
