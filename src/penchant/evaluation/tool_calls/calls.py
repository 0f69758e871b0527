"""What can be called, what was called, and what was wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from penchant.errors import DataError

Language = Literal["python", "java", "javascript"]

Accepted = Mapping[str, Mapping[str, Sequence[Any]]]
"""One call that is right: the function's name -> argument -> the values that are; "" among them: it may be left out."""


@dataclass(frozen=True)
class Call:
    """One call, as a model wrote it.

    Attributes:
        arguments: by name. In Java and JavaScript each is the text of its literal.
    """

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Argument:
    """What a function takes under one name.

    Attributes:
        type: as the schema calls it, as in ``integer``, ``array``, ``ArrayList``.
        items: the type of its elements, where the schema gives one.
    """

    type: str
    items: str | None = None


@dataclass(frozen=True)
class Function:
    """What may be called.

    Attributes:
        schema: as it is shown to a model: name, description, parameters.
    """

    name: str
    arguments: Mapping[str, Argument]
    required: tuple[str, ...]
    schema: Mapping[str, Any]

    @classmethod
    def read(cls, schema: Mapping[str, Any], where: str) -> Function:
        """From ``{"name", "description", "parameters": {"properties": {NAME: {"type", "items"}}, "required"}}``.

        Raises:
            DataError: it is no such schema.
        """
        try:
            parameters = schema["parameters"]
            arguments = {
                name: Argument(str(each["type"]), (each.get("items") or {}).get("type"))
                for name, each in parameters["properties"].items()
            }
            return cls(str(schema["name"]), arguments, tuple(parameters.get("required") or ()), schema)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"no function's schema: {error!r}",
                where=where,
                fix="give name, and parameters with properties and types",
            ) from error


class Fault(StrEnum):
    """Why an answer is wrong."""

    NO_CALL = "no call could be read"
    UNCALLED_FOR = "a call where none is due"
    COUNT = "another number of calls"
    FUNCTION = "another function"
    MISSING = "a required argument is missing"
    UNKNOWN = "an argument that the function does not take"
    TYPE = "a value of another type"
    VALUE = "a value that is not accepted"
    LEFT_OUT = "an argument that was needed here is left out"
    UNMATCHED = "no call fits one of those that are due"
