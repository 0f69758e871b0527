"""Rounding errors of a model's numbers in half precision: from float32, or between two ways to compute them.

A copy of a large model in float32 does not fit beside it. So weights are cast while the module that has them runs, one
module at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from penchant.engine.memory import available_bytes

HALF_DTYPES = (torch.bfloat16, torch.float16)


class NoFloat32(Exception):
    """The model cannot be run in float32 here."""


def is_half(dtype: torch.dtype, products: str) -> bool:
    """Whether matrix products are rounded to half precision.

    Args:
        dtype: of the weights.
        products: ``float32`` or ``bfloat16``, as in `scoring.precision`.
    """
    return products == "bfloat16" or dtype in HALF_DTYPES


def largest(difference: Tensor) -> float:
    """The largest absolute value; infinite where any is not a number."""
    value = float(difference.abs().max())
    return value if value == value else float("inf")


def rounding_note(rounding: float | None) -> str:
    """A line about numbers in half precision.

    Args:
        rounding: largest error from float32 on a sample; None where it could not be measured.
    """
    size = "by an unknown amount" if rounding is None else f"by up to {rounding:.2g} on a sample"
    return (
        f"bfloat16 rounds the model's numbers (log-probs in nats, rewards) {size}: candidates closer than that may "
        "change their order; in float32 they keep it"
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
            return largest(rounded.double() - numbers().double())
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
