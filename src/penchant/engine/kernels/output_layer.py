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

from penchant.engine.kernels import compiled

BLOCK_ELEMENTS = 1 << 23
"""Logits worked on at a time (32 MiB in float32)."""

GPU_BLOCK_ELEMENTS = 1 << 25
"""The same on a GPU, where a smaller block runs shorter than its launch takes."""

MIN_BLOCK = 512
"""Least number of words in a block: a matrix product of fewer columns is slow."""

COUNTED_PASSES = 3
"""Number of passes that are run where memory is counted: all passes take the same."""

_PASS_ELEMENTS = 1 << 18
"""Number of exponentials taken at a time: as many as a core's cache holds."""


def block_elements(device: torch.device) -> int:
    """Logits worked on at a time on a device."""
    return BLOCK_ELEMENTS if device.type == "cpu" else GPU_BLOCK_ELEMENTS


def blocks(tokens: int, vocabulary: int, device: torch.device) -> list[slice]:
    """Slices of the vocabulary whose logits are computed at a time."""
    width = max(1, block_elements(device) // (MIN_BLOCK * max(1, tokens))) * MIN_BLOCK
    return [slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]


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


@dataclass(frozen=True)
class OutputLayer:
    """The output layer: weight [V, D], bias [V] or None, the logits' cap or None, an adapter's logits or None."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    adapter: LowRank | None = None

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
            in_block, index = _target_indices(targets, block)
            target_logits = compiled.capped(logits.gather(1, index[:, None])[:, 0], self.softcap)
            chosen = torch.where(in_block, target_logits, chosen)
            if compiled.use_compiled(logits):
                block_normalisers = compiled.log_sum_exp(logits, self.softcap)
            else:
                block_normalisers = _row_sums(logits, self.softcap, normalisers.dtype)
            normalisers = torch.logaddexp(normalisers, block_normalisers)
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
        """
        sums = self._empty_gradients(hidden, normalisers.dtype, needs)
        kept_logits.reverse()
        for block in self._blocks(hidden, len(kept_logits)):
            logits = kept_logits.pop() if kept_logits else self._logits(hidden, block)
            in_block, index = _target_indices(targets, block)
            upstream_here = torch.where(in_block, upstream, 0.0)
            per_row = (normalisers, index, upstream, upstream_here)
            if compiled.use_compiled(logits):
                logits = compiled.logits_gradient(logits, *per_row, self.softcap)
            else:
                for part in passes(_pass_rows(logits), logits, *per_row):
                    _to_gradient(self.softcap, *part)
            self._add_block(sums, logits, hidden, block)
            del logits
        hidden_gradient = None if sums.hidden is None else sums.hidden.to(hidden.dtype)
        low_gradient = None if sums.low is None or self.adapter is None else sums.low.to(self.adapter.low.dtype)
        return sums._replace(hidden=hidden_gradient, low=low_gradient)

    def _blocks(self, hidden: Tensor, keep: int) -> list[slice]:
        """The vocabulary's blocks; of tensors without data, those kept and a few more, since the others take the same.

        Args:
            keep: number of blocks whose logits stay in memory from the forward to the backward.
        """
        parts = blocks(len(hidden), len(self.weight), hidden.device)
        return parts[: keep + COUNTED_PASSES] if isinstance(hidden, FakeTensor) else parts

    def _empty_gradients(self, hidden: Tensor, dtype: torch.dtype, needs: NeededGradients) -> Gradients:
        """Empty tensors for the gradients; sums over blocks are float32 at least, or every block would round them."""
        needs_hidden, needs_weight, needs_bias, needs_low, needs_up = needs
        adapter = self.adapter
        return Gradients(
            torch.empty_like(hidden, dtype=dtype) if needs_hidden else None,
            torch.empty_like(self.weight) if needs_weight else None,
            torch.empty_like(self.bias) if needs_bias and self.bias is not None else None,
            torch.empty_like(adapter.low, dtype=dtype) if needs_low and adapter is not None else None,
            torch.empty_like(adapter.up) if needs_up and adapter is not None else None,
        )

    def _add_block(self, sums: Gradients, logits: Tensor, hidden: Tensor, block: slice) -> None:
        """Add the gradients that follow from a block's gradient by its logits [N, B]."""
        start = block.start == 0
        if sums.hidden is not None:
            _add_product(sums.hidden, logits, self.weight[block], overwrite=start)
        if sums.weight is not None:
            _add_product(sums.weight[block], logits.T, hidden, overwrite=True)
        if sums.bias is not None:
            sums.bias[block] = logits.sum(0)
        if self.adapter is not None:
            if sums.low is not None:
                _add_product(sums.low, logits, self.adapter.up[block], overwrite=start)
            if sums.up is not None:
                _add_product(sums.up[block], logits.T, self.adapter.low, overwrite=True)

    def _logits(self, hidden: Tensor, block: slice) -> Tensor:
        """Raw logits [N, B]. All of several blocks take the same memory, so that a freed one fits the next."""
        n, words = len(hidden), block.stop - block.start
        room = n * words if words == len(self.weight) else max(block_elements(hidden.device), n * MIN_BLOCK)
        logits = hidden.new_empty(room)[: n * words].view(n, words)
        torch.mm(hidden, self.weight[block].to(hidden.dtype).T, out=logits)
        if self.bias is not None:
            logits.add_(self.bias[block].to(hidden.dtype))
        if self.adapter is not None:
            logits.addmm_(self.adapter.low, self.adapter.up[block].to(hidden.dtype).T)
        return logits


def _target_indices(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Whether each target [N] is in the block, and its index there; any valid index for the others."""
    index = targets - block.start
    clamped = index.clamp(0, block.stop - block.start - 1)
    return index == clamped, clamped


def _add_product(out: Tensor, a: Tensor, b: Tensor, *, overwrite: bool) -> None:
    """``out (+)= a @ b``; with `overwrite` the product replaces `out`, which then needs no zeros."""
    b = b.to(a.dtype)
    if out.dtype == a.dtype:
        out.addmm_(a, b, beta=float(not overwrite))
    elif overwrite:
        out.copy_(a @ b)
    else:
        out.add_(a @ b)


def passes(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of every tensor [N, ...], `rows` at a time, to be changed together in place.

    Of tensors without data, whose memory is counted, the first rows stand for all: the others take the same.
    """
    if isinstance(tensors[0], FakeTensor):
        return iter([tuple(tensor[:rows] for tensor in tensors)] * COUNTED_PASSES)
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def _pass_rows(logits: Tensor) -> int:
    return max(1, _PASS_ELEMENTS // logits.shape[1])


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
