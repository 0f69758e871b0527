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
        type: as the schema calls it, as in ``integer``, ``array``, ``ArrayList``; ``["string", "null"]`` is a string,
            and several types are ``any``.
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
            return cls._read(schema)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            told = error if isinstance(error, ValueError) else repr(error)
            raise DataError(
                f"no function's schema: {told}",
                where=where,
                fix="give name, and parameters: properties, each with its type, and required, a list of their names",
            ) from error

    @classmethod
    def _read(cls, schema: Mapping[str, Any]) -> Function:
        name, parameters = schema["name"], schema["parameters"]
        if not isinstance(name, str) or not name:
            raise ValueError(f"its name is {name!r}, which is no name")
        properties, required = parameters["properties"], parameters.get("required") or []
        _check(parameters, name)
        arguments = {key: _argument(each, f"{name}.{key}") for key, each in properties.items()}
        if not isinstance(required, list):
            raise ValueError(f"{name} requires {required!r}, which is no list of names")
        undeclared = [each for each in required if each not in arguments]
        if undeclared:
            raise ValueError(f"{name} requires {undeclared[0]!r}, which is not among its properties")
        return cls(name, arguments, tuple(required), schema)


def type_name(told: object) -> str:
    """The one type of a schema: of a list the one beside null; any, where there are several.

    Raises:
        ValueError: it is none.
    """
    if isinstance(told, str):
        return told
    if not isinstance(told, list) or not all(isinstance(each, str) for each in told):
        raise ValueError(f"{told!r} is no type")
    others = [each for each in told if each != "null"]
    return others[0] if len(others) == 1 else "any"


def _argument(schema: Mapping[str, Any], place: str) -> Argument:
    if "type" not in schema:
        raise ValueError(f"{place} has no type")
    items = schema.get("items") or {}
    return Argument(type_name(schema["type"]), type_name(items["type"]) if "type" in items else None)


def _check(schema: Any, place: str) -> None:
    """Refuse what is of another shape than its readers take for granted, however deep."""
    if not isinstance(schema, Mapping):
        raise ValueError(f"{place} is {schema!r}, which is no schema")
    if "type" in schema:
        type_name(schema["type"])
    properties, listed = schema.get("properties") or {}, schema.get("enum") or []
    if not isinstance(properties, Mapping):
        raise ValueError(f"the properties of {place} are {properties!r}, which are no names with schemas")
    if not isinstance(listed, list):
        raise ValueError(f"the enum of {place} is {listed!r}, which is no list")
    for name, each in properties.items():
        _check(each, f"{place}.{name}")
    if schema.get("items"):
        _check(schema["items"], f"an element of {place}")


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
