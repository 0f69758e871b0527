"""Whether the packed tree is exact for a model, on real groups: as exact as the padded forward in the same dtype is.

Shapes: C candidates of the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import TreeBatch, pack
from penchant.engine.attention import UnsupportedAttention
from penchant.engine.device import to_float64
from penchant.engine.kernels.layer_fusion import unfuse_layers
from penchant.engine.memory import available_bytes
from penchant.engine.tree import reorder_for_attention, use_tree
from penchant.models.multimodal import set_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HALF_DTYPES = (torch.bfloat16, torch.float16)


class NoFloat32(Exception):
    """The model cannot be run in float32 here."""


def is_half(dtype: torch.dtype, products: str) -> bool:
    """Whether matrix products are rounded to half precision.

    Args:
        dtype: of the weights.
        products: ``float32``, ``bfloat16`` or ``float16``, as in `scoring.precision`.
    """
    return products != "float32" or dtype in HALF_DTYPES


def largest(difference: Tensor) -> float:
    """The largest absolute value of a tensor of any shape; infinite where any is not a number."""
    value = float(difference.abs().max())
    return value if value == value else float("inf")


def rounding_note(rounding: float | None) -> str:
    """A line about numbers in half precision.

    Args:
        rounding: largest error from float32 on a sample; None where it could not be measured.
    """
    size = "by an unknown amount" if rounding is None else f"by up to {rounding:.2g} on a sample"
    return (
        f"half precision rounds the model's numbers (log-probs in nats, rewards) {size}: candidates closer than that "
        "may change their order; in float32 they keep it"
    )


def measure_rounding(
    module: nn.Module,
    numbers: Callable[[], Tensor],
    autocast: Callable[[], AbstractContextManager[None]],
    head: nn.Module | None = None,
) -> float | None:
    """Largest error of a module's numbers from those in float32; None where it does not run in float32.

    Args:
        numbers: computes them with the module, without gradients.
        autocast: the context they are computed in.
        head: see `in_float32`.
    """
    with autocast():
        rounded = numbers()
    try:
        with in_float32(module, head):
            return largest(to_float64(rounded) - to_float64(numbers()))
    except NoFloat32:
        return None


@contextmanager
def in_float32(model: nn.Module, head: nn.Module | None = None) -> Iterator[None]:
    """Run a model of half precision in float32, each module's weights cast while it runs; autocast is off.

    Args:
        model: on one device, not sharded; its weights and dtype are afterwards what they were.
        head: a module of it whose weights are used without its forward; they are cast for the whole time.

    Raises:
        NoFloat32: the largest module does not fit in float32, or the code does not run in it.
    """
    device = next(model.parameters()).device
    owners = [module for module in model.modules() if _own_half(module)]
    needed_bytes = max((2 * sum(t.nbytes for t in _own_half(module).values()) for module in owners), default=0)
    if needed_bytes > available_bytes(device) // 2:
        raise NoFloat32(f"a module takes {needed_bytes >> 20} MB in float32")
    head_tensors = _own_half(head) if head is not None else {}
    originals = {name: tensor.data for name, tensor in head_tensors.items()}
    handles: list[RemovableHandle] = []
    try:
        for tensor in head_tensors.values():
            tensor.data = tensor.float()
        handles += [handle for module in owners for handle in _cast_while_running(module)]
        with torch.autocast(device.type, enabled=False):
            yield
    except (RuntimeError, TypeError, AttributeError) as error:
        raise NoFloat32(str(error)) from error
    finally:
        for handle in handles:
            handle.remove()
        for name, tensor in head_tensors.items():
            tensor.data = originals[name]


def _own_half(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers of half precision."""
    tensors = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.dtype in HALF_DTYPES}


def _cast_while_running(module: nn.Module) -> list[RemovableHandle]:
    """Hooks that put float32 in place of the module's own half precision while its forward runs."""
    tensors = _own_half(module)
    originals: dict[str, Tensor] = {}

    def cast(module: nn.Module, inputs: object) -> None:
        for name, tensor in tensors.items():
            originals.setdefault(name, tensor.data)
            tensor.data = originals[name].float()

    def restore(module: nn.Module, inputs: object, output: object) -> None:
        for name, tensor in tensors.items():
            tensor.data = originals.pop(name, tensor.data)

    return [module.register_forward_pre_hook(cast), module.register_forward_hook(restore, always_call=True)]


ScoreFunction = Callable[..., Tensor]
"""A scorer: log-probs or rewards [G, K] of a packed batch."""

Autocast = Callable[[], AbstractContextManager[None]]

MAX_RATIO = 2.0
"""Largest error of the tree in half precision, as a multiple of the padded forward's."""

LEAST_ROUNDING = 1e-4
"""Smallest error, in nats, that the padded forward is taken to have."""

HALF_TOLERANCES = 10.0
"""Multiple of float32's tolerances that the tree may differ by where weights of half precision are run in float32."""

_GROUPS, _CANDIDATES = 2, 3
"""Number of groups, and of candidates per group, that are checked first."""

_MORE_CANDIDATES = 8
"""Number of candidates per group that are checked before the tree is refused for its rounding."""


@dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        reason: why the tree is refused; None where it is exact.
        rounding: largest error of the used scorer's numbers on the sample, in nats (rewards: as they
            are); None in float32 and float64, and where it could not be measured.
    """

    reason: str | None
    rounding: float | None = None


@dataclass(frozen=True)
class _Padded:
    """Numbers [C] of padded forwards in the dtype that is used, and in float32 where the model runs in it."""

    ways: Sequence[Tensor]
    exact: Tensor | None

    @property
    def rounding(self) -> float | None:
        """Largest error of the padded forwards: from float32, or else from one another."""
        if self.exact is not None:
            return max(largest(way - self.exact) for way in self.ways)
        # On the CPU a row has the same bits alone and in a batch: without a second implementation nothing is known.
        return max((largest(a - b) for a, b in combinations(self.ways, 2)), default=0.0) or None

    @property
    def max_error(self) -> float:
        """Largest error that other numbers may have."""
        if self.rounding is None:
            return 0.2 + 0.02 * largest(self.ways[0])
        return MAX_RATIO * max(self.rounding, LEAST_ROUNDING)

    def error(self, numbers: Tensor) -> float:
        """Largest error of other numbers, by the same measure."""
        return min(largest(numbers - way) for way in ([self.exact] if self.exact is not None else self.ways))


@dataclass(frozen=True)
class TreeCheck:
    """The tree and the padded forward of one model, side by side.

    Attributes:
        autocast: the context in which the model trains and is measured.
        half: whether its matrix products are rounded to half precision there.
    """

    model: PreTrainedModel
    tree: ScoreFunction
    padded: ScoreFunction
    autocast: Autocast
    half: bool

    def verdict(self, sample: Sequence[TokenizedGroup]) -> Verdict:
        """The verdict on a sample; the model is afterwards run as a tree, or refused with its layers as they were."""
        if not self.model._can_set_attn_implementation():
            return Verdict("its attention is not open to other implementations", self._padded_rounding(sample))
        unfuse_layers(self.model)
        try:
            verdict = self._judge(sample)
        except (UnsupportedAttention, TypeError, AttributeError) as error:
            unfuse_layers(self.model)
            return Verdict(str(error), self._padded_rounding(sample))
        if verdict.reason is not None:
            unfuse_layers(self.model)
        return verdict

    def _judge(self, sample: Sequence[TokenizedGroup]) -> Verdict:
        small_sample = _limit_candidates(sample[:_GROUPS], _CANDIDATES)
        if not self.half:
            expected = self._padded_scores("eager", small_sample)
            difference = _in_tolerances(self._tree_scores(small_sample), expected)
            return Verdict(None if difference <= 1 else f"its numbers differ by {difference:.1f} times the tolerance")
        verdict = self._judge_rounding(small_sample)
        large_sample = _limit_candidates(sample, _MORE_CANDIDATES)
        if verdict.reason is not None and _candidates(large_sample) > _candidates(small_sample):
            # Of a few candidates the largest error is mostly chance.
            unfuse_layers(self.model)
            verdict = self._judge_rounding(large_sample)
        return verdict

    def _padded_rounding(self, sample: Sequence[TokenizedGroup]) -> float | None:
        return self._measure(_limit_candidates(sample[:_GROUPS], _CANDIDATES)).rounding if self.half else None

    def _judge_rounding(self, sample: Sequence[TokenizedGroup]) -> Verdict:
        padded = self._measure(sample)
        if padded.exact is not None and (times := self._difference_in_float32(sample, padded.exact)) > HALF_TOLERANCES:
            return Verdict(f"its numbers in float32 differ by {times:.1f} times the tolerance", padded.rounding)
        error, rounding = padded.error(self._tree_scores(sample)), padded.rounding
        if error <= padded.max_error:
            return Verdict(None, None if rounding is None else error)
        padded_error = "unknown" if rounding is None else f"{rounding:.2g}"
        return Verdict(
            f"its numbers are off by {error:.2g}, the padded forward's in the same dtype by {padded_error}", rounding
        )

    def _measure(self, sample: Sequence[TokenizedGroup]) -> _Padded:
        names = self._padded_attentions()
        ways = [self._padded_scores(name, sample) for name in names]
        try:
            with in_float32(self.model):
                return _Padded(ways, self._padded_scores(names[0], sample, exact=True))
        except NoFloat32:
            return _Padded([*ways, *(self._padded_scores(name, sample, together=True) for name in names)], None)

    def _difference_in_float32(self, sample: Sequence[TokenizedGroup], exact: Tensor) -> float:
        """Difference of the tree from the padded forward, in tolerances; 0 where the tree does not run in float32."""
        try:
            with in_float32(self.model, self.model.get_output_embeddings()):
                return _in_tolerances(self._tree_scores(sample, exact=True), exact)
        except NoFloat32:
            return 0.0

    def _padded_attentions(self) -> list[str | None]:
        """Attention implementations to compare; None is the model's own."""
        if not self.model._can_set_attn_implementation():
            return [None]
        return ["eager", "sdpa"] if self.model._supports_sdpa else ["eager"]

    def _padded_scores(
        self, attention: str | None, sample: Sequence[TokenizedGroup], *, together: bool = False, exact: bool = False
    ) -> Tensor:
        """Numbers [C] of padded rows: one by one, as all logits of many rows are gigabytes, or a group's together."""
        if attention is not None:
            set_attention(self.model, attention)
        single_rows = [replace(group, responses=(response,)) for group in sample for response in group.responses]
        batches = [pack([group]).to(self.model.device) for group in (sample if together else single_rows)]
        with nullcontext() if exact else self.autocast():
            return torch.cat([_by_candidate(self.padded(batch), batch) for batch in batches])

    def _tree_scores(self, sample: Sequence[TokenizedGroup], *, exact: bool = False) -> Tensor:
        batch = reorder_for_attention(pack(sample), self.model).to(self.model.device)
        use_tree(self.model)
        with nullcontext() if exact else self.autocast():
            return _by_candidate(self.tree(batch), batch)


def _by_candidate(numbers: Tensor, batch: TreeBatch) -> Tensor:
    """Numbers [C] of the candidates of a batch, from [G, K]."""
    return numbers.flatten()[batch.slots.to(numbers.device)]


def _limit_candidates(sample: Sequence[TokenizedGroup], candidates: int) -> list[TokenizedGroup]:
    return [replace(group, responses=group.responses[:candidates], loss_masks=None) for group in sample]


def _candidates(sample: Sequence[TokenizedGroup]) -> int:
    return sum(len(group.responses) for group in sample)


def _in_tolerances(actual: Tensor, expected: Tensor) -> float:
    """Largest |actual - expected| as a multiple of what rounding allows in float32."""
    relative = 1e-5
    return largest((actual - expected) / (10 * relative + relative * expected.abs()))
