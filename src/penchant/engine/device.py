"""What this process computes with: its device, the numbers of that device, and private operators of torch.

The device is the chosen one, or the best there is. Private operators are asked for by the arguments they take and never
by torch's version: a version may drop an operator, rename an argument or ask for a further one. An operator that does
not take a call as it is made here counts as missing: another path then computes the same numbers, and one warning says
so. All are called by keyword, so that arguments which a version adds change nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from inspect import signature
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from penchant.errors import ConfigError

DeviceChoice = Literal["auto", "cpu", "cuda", "mps", "xpu"]

BFLOAT16_CAPABILITY = (8, 0)
"""Lowest compute capability of NVIDIA cards with matrix products in bfloat16 and flash attention."""

DEVICE_VARIABLE = "PENCHANT_DEVICE"
"""Environment variable that holds the choice, so that processes which this one starts have the same device."""


def available_devices() -> list[str]:
    """Types of devices of this machine, the preferred one first; ROCm's cards are among ``cuda``."""
    availability = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    return [name for name, is_available in availability.items() if is_available]


def use_device(choice: DeviceChoice) -> None:
    """Choose the device of this process; ``auto`` is the first of `available_devices`.

    Raises:
        ConfigError: the device is not there; names those that are.
    """
    _require(choice, "--device")
    os.environ[DEVICE_VARIABLE] = choice


@contextmanager
def on_device(choice: DeviceChoice) -> Iterator[None]:
    """`use_device` inside the context, by the key `device` of a configuration; ``auto`` leaves the choice as it is.

    Raises:
        ConfigError: the device is not there; names those that are.
    """
    _require(choice, "device")
    earlier = os.environ.get(DEVICE_VARIABLE, "auto")
    os.environ[DEVICE_VARIABLE] = earlier if choice == "auto" else choice
    try:
        yield
    finally:
        os.environ[DEVICE_VARIABLE] = earlier


def _require(choice: str, where: str) -> None:
    devices = available_devices()
    if choice not in ("auto", *devices):
        raise ConfigError(
            f"found {choice}, which this machine (or this build of torch) does not have; it has: {', '.join(devices)}",
            where=where,
            fix="name one of those, or auto for the first of them",
        )


def local_device() -> torch.device:
    """This process's device; of several cards of the chosen type the one that torchrun's LOCAL_RANK names.

    Raises:
        ConfigError: the variable `DEVICE_VARIABLE` names a device that is not there.
    """
    choice = os.environ.get(DEVICE_VARIABLE, "auto")
    _require(choice, DEVICE_VARIABLE)
    name = available_devices()[0] if choice == "auto" else choice
    return torch.device(name, int(os.environ.get("LOCAL_RANK", "0"))) if name in ("cuda", "xpu") else torch.device(name)


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64, as all but Apple's GPUs do."""
    return device.type != "mps"


def float64_device(device: torch.device) -> torch.device:
    """The device of a model's exact sums, and of losses and metrics, which follow them: the host without float64."""
    return device if has_float64(device) else torch.device("cpu")


def to_float64(values: Tensor) -> Tensor:
    """Values of any shape in float64, on the `float64_device` of their device; gradients go back to theirs."""
    return values.to(float64_device(values.device)).double()


def best_dtype(device: torch.device) -> Literal["float32", "bfloat16", "float16"]:
    """The dtype of matrix products in training that suits a device: half precision on cards, else float32."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY else "float16"
    return "bfloat16" if device.type == "xpu" and torch.xpu.is_bf16_supported() else "float32"


def has_flash_attention(device: torch.device) -> bool:
    """Whether a device has torch's flash attention, as CUDA cards of compute capability 8.0 and more do."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY


def require_dtype(dtype: str, device: torch.device) -> None:
    """Refuse matrix products that a device cannot compute.

    Raises:
        ConfigError: names dtype and device.
    """
    if dtype == "bfloat16" and device.type == "cuda" and best_dtype(device) != "bfloat16":
        major, minor = torch.cuda.get_device_capability(device)
        raise ConfigError(
            f"bfloat16 needs a card of compute capability {'.'.join(map(str, BFLOAT16_CAPABILITY))}, and "
            f"{torch.cuda.get_device_name(device)} has {major}.{minor}",
            where="training.dtype",
            fix="training.dtype=float16, which a scale of the loss keeps in range; or training.dtype=float32",
        )
    if dtype != "float32" and not torch.amp.is_autocast_available(device.type):
        raise ConfigError(
            f"torch computes no mixed precision on {device.type}, and {dtype} is asked for",
            where="training.dtype",
            fix="training.dtype=float32",
        )


@contextmanager
def float32_products(precision: Literal["highest", "high"]) -> Iterator[None]:
    """Set how a card multiplies float32 matrices: ``highest`` is exact, ``high`` TF32, whose inputs have 10 bits."""
    earlier = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(earlier)


def training_products(device: torch.device) -> AbstractContextManager[None]:
    """How training multiplies float32 matrices: in TF32 on CUDA cards, where exact products take many times as long."""
    return float32_products("high") if device.type == "cuda" else nullcontext()


def products_name(dtype: str, device: torch.device) -> str:
    """The precision of matrix products, for keys of cached numbers: the dtype, or ``tf32``."""
    is_tf32 = dtype == "float32" and device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if is_tf32 else dtype


logger = logging.getLogger(__name__)


class OperatorCall(NamedTuple):
    """A call of an operator of `torch.ops.aten`.

    Attributes:
        operator: its name, with the overload where that is not the default, as in ``mm.dtype_out``.
        arguments: names of the arguments that are passed, with spaces between them.
    """

    operator: str
    arguments: str


def takes(schema: Any, arguments: str) -> bool:
    """Whether an operator of this schema takes all these arguments by name, and needs no others."""
    names = {argument.name for argument in schema.arguments}
    required = {argument.name for argument in schema.arguments if not argument.has_default_value()}
    return required <= set(arguments.split()) <= names


def has_operator(call: OperatorCall) -> bool:
    """Whether torch has an operator that takes a call."""
    name, _, overload = call.operator.partition(".")
    try:
        operator = getattr(getattr(torch.ops.aten, name), overload or "default")
    except AttributeError:
        return False
    return takes(operator._schema, call.arguments)


@cache
def has_operators(calls: tuple[OperatorCall, ...], otherwise: str) -> bool:
    """Whether torch has an operator for every one of these calls; where not, one warning.

    Not for code that torch compiles: the compiler does not follow schemas.

    Args:
        otherwise: how the same is computed without them, and what that costs.
    """
    missing_operators = [call.operator for call in calls if not has_operator(call)]
    if missing_operators:
        warn_missing(", ".join(missing_operators), otherwise)
    return not missing_operators


def warn_missing(operators: str, otherwise: str) -> None:
    """Log that torch lacks operators, or has them with other arguments."""
    logger.warning(f"torch {torch.__version__} has no {operators} as Penchant calls it: {otherwise}")


@cache
def has_keyword(function: Callable[..., Any], name: str) -> bool:
    """Whether a function of Python takes a keyword."""
    return name in signature(function).parameters
