"""Private operators of torch, asked for by the arguments they take and never by torch's version.

A version may drop an operator, rename an argument or ask for a further one. An operator that does not take a call as it
is made here counts as missing: another path then computes the same numbers, and one warning says so. All are called by
keyword, so that arguments which a version adds change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import torch

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
