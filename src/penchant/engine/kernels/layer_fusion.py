"""Layer fusion: a model's parts computed by fused functions, its last layer for the tokens that are read.

No model's code is copied or changed. A module's class is replaced by a subclass of it whose forward computes the same,
where the class's own forward, tried on small numbers, is found to compute what the fused function does; any other
module is left alone. Weights, names and what is saved stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from penchant.engine.kernels.compiled_layers import rms_norm, rotate, swiglu, swiglu_linear

_EPSILONS = ("variance_epsilon", "eps")
_ROTATION = "apply_rotary_pos_emb"
_FUSED = "_penchant_fused"


class _Norm(nn.Module):
    """`rms_norm` of float32 or float64 numbers; norms in half precision keep their own rounding."""

    weight: Tensor

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype not in (torch.float32, torch.float64):
            out: Tensor = super().forward(hidden_states)
            return out
        epsilon: Any = next(getattr(self, name) for name in _EPSILONS if hasattr(self, name))
        return rms_norm(hidden_states, self.weight, epsilon)


class _Gate(nn.Module):
    """`swiglu` between the projections, whatever these are; fused with the last one where it is a plain layer."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
        if type(down) is nn.Linear:
            return swiglu_linear(gate, up, down.weight, down.bias)
        output: Tensor = down(swiglu(gate, up))
        return output


class _RowSubset(nn.Module):
    """An MLP of the tokens in `rows` only, where these are set; 0 for the other tokens."""

    rows: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        if self.rows is None:
            return super().forward(x)
        output = super().forward(x.index_select(1, self.rows))
        # Experts may return their router's scores too.
        row_outputs, *further_outputs = output if isinstance(output, tuple) else (output,)
        all_outputs = row_outputs.new_zeros(*x.shape[:2], row_outputs.shape[-1]).index_copy(1, self.rows, row_outputs)
        return (all_outputs, *further_outputs) if further_outputs else all_outputs


class _LastLayer(nn.Module):
    """The last layer; with a tree it is computed only for the tokens that are read."""

    mlp: _RowSubset

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tree = kwargs.get("tree")
        if tree is not None:
            kwargs["tree"], self.mlp.rows = tree.last_layer_plan, tree.read_indices
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.mlp.rows = None


def fuse_layers(model: nn.Module) -> None:
    """Fuse a model's layers where possible, and compute its last one only for tokens that are read.

    On a GPU nothing is fused here: there torch compiles whole layers, from their own classes' operations.
    """
    if not any(parameter.is_cuda for parameter in model.parameters()):
        with torch.device("cpu"):
            _fuse_modules(model)
    for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        last: Any = layers[-1] if len(layers) else None
        if isinstance(getattr(last, "mlp", None), nn.Module) and not isinstance(last, _LastLayer):
            for forward_class, part in ((_LastLayer, last), (_RowSubset, last.mlp)):
                part.__class__ = subclass_with_forward(forward_class, part.__class__)


def unfuse_layers(model: nn.Module) -> None:
    """Undo `fuse_layers`: every layer computes as its own class does."""
    for module in model.modules():
        while _FUSED in vars(type(module)):
            module.__class__ = type(module).__bases__[-1]


def _fuse_modules(model: nn.Module) -> None:
    for module in model.modules():
        kind: Any = type(module)
        if _FUSED in vars(kind):
            continue
        if _is_rms_norm(kind) and isinstance(getattr(module, "weight", None), Tensor):
            module.__class__ = subclass_with_forward(_Norm, kind)
        elif _is_gate(kind) and _is_silu(getattr(module, "act_fn", None)):
            module.__class__ = subclass_with_forward(_Gate, kind)
        elif _calls_rotation(kind):
            module.__class__ = _with_fused_rotation(kind)


@lru_cache
def subclass_with_forward(forward_class: Any, kind: Any) -> type[Any]:
    """A subclass of a module's class with the forward of another class; it has the module's class name."""
    return type(kind.__name__, (forward_class, kind), {"__module__": kind.__module__, _FUSED: True})


@lru_cache
def _is_rms_norm(kind: Any) -> bool:
    """Whether the class's forward is `rms_norm` of its weight, on small numbers."""
    x, weight = _numbers((3, 8), (8,))
    stand_in = SimpleNamespace(weight=weight, **dict.fromkeys(_EPSILONS, 0.1))
    return _computes(kind.forward, (stand_in, x), rms_norm(x, weight, 0.1))


@lru_cache
def _is_gate(kind: Any) -> bool:
    """Whether the class's forward is a gated MLP of its projections, on small numbers."""
    x, gate, up, down = _numbers(*[(8, 8)] * 4)
    stand_in = SimpleNamespace(
        gate_proj=lambda t: t @ gate, up_proj=lambda t: t @ up, down_proj=lambda t: t @ down, act_fn=silu
    )
    return _computes(kind.forward, (stand_in, x), swiglu(x @ gate, x @ up) @ down)


def _is_silu(activation: object) -> bool:
    (x,) = _numbers((8,))
    return callable(activation) and _computes(activation, (x,), silu(x))


@lru_cache
def _calls_rotation(kind: Any) -> bool:
    """Whether the class's forward calls its module's rotation, and this is `rotate` of queries and keys.

    Of their first half too, where it takes angles for less than whole heads.
    """
    code = getattr(kind.forward, "__code__", None)
    if code is None or _ROTATION not in code.co_names:
        return False
    rotation = kind.forward.__globals__[_ROTATION]

    def agrees(part: int) -> bool:
        q, k, cos, sin = _numbers((1, 2, 3, 8), (1, 1, 3, 8), (1, 3, part), (1, 3, part))
        ours = torch.cat(_rotate_both(q, k, cos, sin), 1)
        return _computes(
            lambda *arguments: torch.cat(rotation(*arguments), 1), (q, k, cos, sin), ours, refuses=part < 8
        )

    return agrees(8) and agrees(4)


@lru_cache
def _with_fused_rotation(kind: Any) -> type[Any]:
    original = kind.forward
    namespace = {**original.__globals__, _ROTATION: _rotate_both}
    forward = FunctionType(original.__code__, namespace, original.__name__, original.__defaults__, original.__closure__)
    forward.__kwdefaults__ = original.__kwdefaults__
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, _FUSED: True, "forward": forward})


def _rotate_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """By the contract of transformers' `apply_rotary_pos_emb`: heads [B, H, T, D] by angles [B, T, D or fewer]."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    rotary_parts, plain_parts = zip(
        *(x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], -1) for x in (q, k)), strict=True
    )
    q, k = (
        torch.cat([rotate(x, cos, sin), plain], -1) if plain.shape[-1] else rotate(x, cos, sin)
        for x, plain in zip(rotary_parts, plain_parts, strict=True)
    )
    return q, k


def _computes(function: Callable[..., Any], arguments: Sequence[Any], expected: Tensor, refuses: bool = False) -> bool:
    """Whether a foreign function's result is the expected one; `refuses` is the answer where it raises."""
    try:
        result = function(*arguments)
    except Exception:  # Foreign code may raise anything on a stand-in.
        return refuses
    same_shape = isinstance(result, Tensor) and result.shape == expected.shape
    return same_shape and torch.allclose(result, expected, rtol=1e-5, atol=1e-6)


def _numbers(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Random numbers of these shapes, all of them different."""
    source = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=source, device="cpu") for shape in shapes]
