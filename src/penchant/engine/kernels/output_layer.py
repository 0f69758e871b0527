"""A language model's output layer, a block of the vocabulary at a time: log-probs there, their gradients back.

Each block's logits are worked on while the caches hold them, and its rows of the weight's gradient are written once.

Shapes: N target tokens, D hidden size, V vocabulary, r rank of an adapter; n rows of a part, B words of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from penchant.engine.device import OperatorCall, has_operators
from penchant.engine.kernels import compiled

FLOAT32_CALLS = (
    OperatorCall("mm.dtype_out", "self mat2 out_dtype out"),
    OperatorCall("addmm.dtype_out", "self mat1 mat2 out_dtype out"),
)

MIN_BLOCK = 512
"""Least number of words in a block: a matrix product of fewer columns is slow."""

KEPT_SHARE = 0.05
"""The part of a card's memory that the logits kept for the backward may take, and that one block may take."""

ASSUMED_CARD_BYTES = 139 << 30
"""Memory of the card where tensors of a GPU have no data and the machine has no card."""

COUNTED_PASSES = 3
"""Number of passes that are run where memory is counted: all passes take the same."""

_PASS_ELEMENTS = 1 << 18
"""Number of exponentials taken at a time: as many as a core's cache holds."""


@dataclass(frozen=True)
class BlockRule:
    """How many logits are worked on at a time and kept, and how the products of blocks are added up.

    Attributes:
        block_elements: logits worked on at a time.
        kept_elements: logits that may be kept from the forward for the backward.
        frozen_elements: with a frozen head, logits computed at a time, in whole rows; their gradient is taken at once.
        padded: every one of several blocks takes the memory of a whole one, so that a freed one fits the next.
        float32_products: products in half precision that are added up are not rounded before.
    """

    block_elements: int
    kept_elements: int
    frozen_elements: int
    padded: bool
    float32_products: bool

    def slices(self, tokens: int, vocabulary: int) -> list[slice]:
        """Slices of the vocabulary whose logits are computed at a time."""
        width = max(1, self.block_elements // (MIN_BLOCK * max(1, tokens))) * MIN_BLOCK
        if not self.padded and tokens * vocabulary <= self.block_elements:
            width = max(1, vocabulary)
        return [slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]

    def room(self, tokens: int, words: int, vocabulary: int) -> int:
        """Number of logits that the memory of a block of so many words holds."""
        return max(self.block_elements, tokens * MIN_BLOCK) if self.padded and words < vocabulary else tokens * words

    def blocks_to_keep(self, tokens: int, vocabulary: int) -> int:
        """Number of blocks, from the first, whose logits the forward keeps for the backward."""
        first_block, *_ = slices = self.slices(tokens, vocabulary)
        if not self.padded and tokens * vocabulary <= self.kept_elements:
            return len(slices)
        return min(len(slices), self.kept_elements // max(1, tokens * (first_block.stop - first_block.start)))


CPU_RULE = BlockRule(
    block_elements=1 << 23, kept_elements=1 << 27, frozen_elements=1 << 25, padded=True, float32_products=False
)
"""Blocks of 32 MiB in float32, which a CPU's caches hold. Its products in bfloat16 come in bfloat16 alone."""

GPU_BLOCK = 1 << 29
"""Logits worked on at a time on a GPU, of which every block costs launches and another pass over the hidden states."""


def block_rule(device: torch.device, dtype: torch.dtype) -> BlockRule:
    """The rule for a device and the dtype of the logits."""
    if device.type != "cuda":
        return CPU_RULE
    kept_elements = int(KEPT_SHARE * card_bytes(device)) // dtype.itemsize
    block_elements = min(GPU_BLOCK, kept_elements)
    return BlockRule(block_elements, kept_elements, block_elements, padded=False, float32_products=True)


def card_bytes(device: torch.device) -> int:
    """Memory of a GPU; an assumed size where the machine has none, for tensors without data."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device).total_memory)
    return ASSUMED_CARD_BYTES


NeededGradients = tuple[bool, bool, bool, bool, bool]
"""Whether gradients by hidden states, weight, bias, and an adapter's low and up are needed."""


class LowRank(NamedTuple):
    """A low-rank adapter's part of the logits, ``low @ up.T``: low [N, r], up [V, r]."""

    low: Tensor
    up: Tensor


class Gradients(NamedTuple):
    """Gradients by an output layer's inputs; None where they are not needed."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    low: Tensor | None = None
    up: Tensor | None = None

    def rounded(self, dtype: torch.dtype) -> Gradients:
        """The same with those by hidden states and by low, which are of one dtype, in it."""
        hidden, low = (None if sums is None else sums.to(dtype) for sums in (self.hidden, self.low))
        return self._replace(hidden=hidden, low=low)


@dataclass(frozen=True)
class OutputLayer:
    """The output layer: weight [V, D], bias [V] or None, the logits' cap or None, an adapter's logits or None.

    Attributes:
        gradient_dtype: dtype of the weight's gradient; None is the weight's own.
    """

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    adapter: LowRank | None
    rule: BlockRule
    gradient_dtype: torch.dtype | None = None

    @staticmethod
    def sum_dtype(hidden: Tensor) -> torch.dtype:
        """The dtype of sums over the vocabulary for hidden states [N, D]: float32 at least."""
        return torch.promote_types(hidden.dtype, torch.float32)

    def log_probs(self, hidden: Tensor, targets: Tensor, keep: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Log-probs [N] of the targets, log-sum-exp [N] of rows, and raw logits [N, B] of the first `keep` blocks."""
        n = len(targets)
        dtype = self.sum_dtype(hidden)
        chosen, normalisers = hidden.new_zeros(n, dtype=dtype), hidden.new_full((n,), -torch.inf, dtype=dtype)
        kept_logits: list[Tensor] = []
        for block in self._blocks(hidden, keep):
            logits = self._logits(hidden, block)
            accumulate_logsumexp = (
                compiled.accumulate_logsumexp if compiled.use_compiled(logits) else _accumulate_logsumexp
            )
            normalisers, chosen = accumulate_logsumexp(logits, targets - block.start, normalisers, chosen, self.softcap)
            if len(kept_logits) < keep:
                kept_logits.append(logits)
            del logits
        return chosen - normalisers, normalisers, kept_logits

    def gradients(
        self,
        hidden: Tensor,
        targets: Tensor,
        normalisers: Tensor,
        upstream: Tensor,
        kept_logits: list[Tensor],
        needs: NeededGradients,
    ) -> Gradients:
        """Gradients of ``upstream . log_probs`` by hidden states, weight, bias and the adapter's factors, where needed.

        Args:
            hidden: [N, D]; `targets`, `normalisers` and `upstream` are [N].
            kept_logits: the first blocks' logits; consumed and freed one by one.
            needs: which of the five are needed.

        Returns:
            those by hidden states and by low in float32 where they are sums over blocks; see `Gradients.rounded`.
        """
        sums = self._empty_gradients(hidden, needs)
        kept_logits.reverse()
        for block in self._blocks(hidden, len(kept_logits)):
            logits = kept_logits.pop() if kept_logits else self._logits(hidden, block)
            per_row = (normalisers, targets - block.start, upstream)
            if compiled.use_compiled(logits):
                compiled.logits_gradient(logits, *per_row, self.softcap)
            else:
                _to_gradients(logits, *per_row, self.softcap)
            self._add_block(sums, logits, hidden, block)
            del logits
        return sums

    def _blocks(self, hidden: Tensor, keep: int) -> list[slice]:
        """The vocabulary's blocks; of tensors without data, those kept and a few more, since the others take the same.

        Args:
            keep: number of blocks whose logits stay in memory from the forward to the backward.
        """
        parts = self.rule.slices(len(hidden), len(self.weight))
        return parts[: keep + COUNTED_PASSES] if isinstance(hidden, FakeTensor) else parts

    def _empty_gradients(self, hidden: Tensor, needs: NeededGradients) -> Gradients:
        """Empty tensors for the gradients; sums over blocks are float32 at least, or every block would round them."""
        needs_hidden, needs_weight, needs_bias, needs_low, needs_up = needs
        several = len(self.rule.slices(len(hidden), len(self.weight))) > 1
        dtype = self.sum_dtype(hidden) if several else hidden.dtype
        adapter = self.adapter
        return Gradients(
            torch.empty_like(hidden, dtype=dtype) if needs_hidden else None,
            torch.empty_like(self.weight, dtype=self.gradient_dtype) if needs_weight else None,
            torch.empty_like(self.bias) if needs_bias and self.bias is not None else None,
            torch.empty_like(adapter.low, dtype=dtype) if needs_low and adapter is not None else None,
            torch.empty_like(adapter.up) if needs_up and adapter is not None else None,
        )

    def _add_block(self, sums: Gradients, logits: Tensor, hidden: Tensor, block: slice) -> None:
        """Add the gradients that follow from a block's gradient by its logits [N, B]."""
        start, exact = block.start == 0, self.rule.float32_products
        if sums.hidden is not None:
            _add_product(sums.hidden, logits, self.weight[block], overwrite=start, exact=exact)
        if sums.weight is not None:
            _add_product(sums.weight[block], logits.T, hidden, overwrite=True, exact=exact)
        if sums.bias is not None:
            sums.bias[block] = logits.sum(0)
        if self.adapter is not None:
            if sums.low is not None:
                _add_product(sums.low, logits, self.adapter.up[block], overwrite=start, exact=exact)
            if sums.up is not None:
                _add_product(sums.up[block], logits.T, self.adapter.low, overwrite=True, exact=exact)

    def _logits(self, hidden: Tensor, block: slice) -> Tensor:
        """Raw logits [N, B]."""
        n, words = len(hidden), block.stop - block.start
        logits = hidden.new_empty(self.rule.room(n, words, len(self.weight)))[: n * words].view(n, words)
        torch.mm(hidden, self.weight[block].to(hidden.dtype).T, out=logits)
        if self.bias is not None:
            logits.add_(self.bias[block].to(hidden.dtype))
        if self.adapter is not None:
            logits.addmm_(self.adapter.low, self.adapter.up[block].to(hidden.dtype).T)
        return logits


def _add_product(out: Tensor, a: Tensor, b: Tensor, *, overwrite: bool, exact: bool) -> None:
    """``out (+)= a @ b``.

    Args:
        overwrite: the product replaces `out`, which then needs no zeros.
        exact: a product whose dtype is less than that of `out` is not rounded to it before it is added.
    """
    b = b.to(a.dtype)
    if out.dtype == a.dtype:
        out.addmm_(a, b, beta=float(not overwrite))
    elif exact and out.dtype == torch.float32:
        _add_float32_product(out, a, b, overwrite=overwrite)
    elif overwrite:
        out.copy_(a @ b)
    else:
        out.add_(a @ b)


def _add_float32_product(out: Tensor, a: Tensor, b: Tensor, *, overwrite: bool) -> None:
    """``out (+)= a @ b`` in float32 for factors in half precision."""
    if not _has_float32_kernel(a):
        out.addmm_(a.to(out.dtype), b.to(out.dtype), beta=float(not overwrite))
    elif overwrite or isinstance(out, FakeTensor):
        # Without data the sum takes what the product takes, whose shape all versions of torch know.
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)


def _has_float32_kernel(factor: Tensor) -> bool:
    """Whether the device multiplies factors in half precision into float32: CUDA does, ROCm and CPUs do not."""
    return (
        factor.is_cuda
        and torch.version.hip is None
        and has_operators(FLOAT32_CALLS, "the output layer multiplies float32 copies of its factors, which is slower")
    )


def passes(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of every tensor [N, ...], `rows` at a time, to be changed together in place.

    Of tensors without data, whose memory is counted, the first rows stand for all: the others take the same.
    """
    if isinstance(tensors[0], FakeTensor):
        return iter([tuple(tensor[:rows] for tensor in tensors)] * COUNTED_PASSES)
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def _pass_rows(logits: Tensor) -> int:
    return max(1, _PASS_ELEMENTS // logits.shape[1])


def _accumulate_logsumexp(
    logits: Tensor, index: Tensor, normalisers: Tensor, chosen: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """`compiled.add_words`, a few rows at a time."""
    in_block, clamped = _in_block(index, logits)
    target_logits = compiled.capped(logits.gather(1, clamped[:, None])[:, 0], softcap)
    chosen = torch.where(in_block, target_logits, chosen)
    return torch.logaddexp(normalisers, _row_sums(logits, softcap, normalisers.dtype)), chosen


def _in_block(index: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each index [N] of a target is one of the block's words, and that word; any valid one for the others."""
    clamped = index.clamp(0, logits.shape[1] - 1)
    return index == clamped, clamped


def _row_sums(logits: Tensor, softcap: float | None, dtype: torch.dtype) -> Tensor:
    """Log-sum-exp [N] of a block's raw logits [N, B], a few rows at a time."""
    # A function of its own: a loop's last rows would keep the block's memory until the next block has its own.
    sums = logits.new_empty(len(logits), dtype=dtype)
    for rows, out in passes(_pass_rows(logits), logits, sums):
        out.copy_(_log_sum_exp(compiled.capped(rows, softcap)))
    return sums


def _log_sum_exp(values: Tensor) -> Tensor:
    top = values.amax(1)
    return (values - top[:, None]).exp_().sum(1).log_().add_(top)


def _to_gradients(logits: Tensor, normalisers: Tensor, index: Tensor, upstream: Tensor, softcap: float | None) -> None:
    """`compiled.logits_gradient`, a few rows at a time."""
    in_block, clamped = _in_block(index, logits)
    at_target = torch.where(in_block, upstream, 0.0)
    for part in passes(_pass_rows(logits), logits, normalisers, clamped, upstream, at_target):
        _to_gradient(softcap, *part)


def _to_gradient(
    softcap: float | None, logits: Tensor, normalisers: Tensor, index: Tensor, upstream: Tensor, at_target: Tensor
) -> None:
    """Replace raw logits [N, B] by their gradient, ``upstream (onehot - softmax)`` through the soft-cap.

    Args:
        at_target: the upstream of rows whose target is in the block, 0 of the others.
    """
    values = compiled.capped(logits, softcap)
    in_place = softcap is None and values.dtype == logits.dtype
    gradient = torch.sub(values, normalisers[:, None], out=values if in_place else None)
    gradient.exp_().mul_(-upstream[:, None])
    gradient.scatter_add_(1, index[:, None], at_target[:, None])
    if softcap is not None:
        gradient.mul_(1 - (values / softcap) ** 2)
    if not in_place:
        logits.copy_(gradient)
