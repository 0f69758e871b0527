"""Types of tool calling: the functions on offer, the calls of an answer, and the faults of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from penchant.errors import DataError

Language = Literal["python", "java", "javascript"]

Accepted = Mapping[str, Mapping[str, Sequence[Any]]]
"""One accepted call: {function name: {argument name: accepted values}}. An argument that accepts "" may be left out."""


@dataclass(frozen=True)
class Call:
    """One call, as a model wrote it.

    Attributes:
        arguments: the values by argument name. In Java and JavaScript a value is the text of its literal.
    """

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class DueCall:
    """A call that is due, with positional arguments, which answers cannot have.

    Attributes:
        positional: the values of the positional arguments.
        keywords: the values of the others by name.
    """

    name: str
    positional: tuple[Any, ...]
    keywords: Mapping[str, Any]


@dataclass(frozen=True)
class Argument:
    """One argument of a function.

    Attributes:
        type: the type's name in the schema, such as ``integer``, ``array`` or ``ArrayList``; ``["string", "null"]`` is
            read as ``string``, and several types as ``any``.
        items: the type of the elements, if the schema gives one.
    """

    type: str
    items: str | None = None


@dataclass(frozen=True)
class Function:
    """A function that a model may call.

    Attributes:
        arguments: the arguments by name.
        required: the names of the arguments that a call must have.
        schema: the schema that a model is shown: name, description, parameters.
    """

    name: str
    arguments: Mapping[str, Argument]
    required: tuple[str, ...]
    schema: Mapping[str, Any]

    @classmethod
    def read(cls, schema: Mapping[str, Any], where: str) -> Function:
        """The function of a schema.

        Args:
            schema: ``{"name", "description", "parameters": {"properties": {NAME: {"type", "items"}}, "required"}}``.
            where: the file and line that error messages name.

        Raises:
            DataError: the schema has another form.
        """
        try:
            return cls._read(schema)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = error if isinstance(error, ValueError) else repr(error)
            raise DataError(
                f"not the schema of a function: {reason}",
                where=where,
                fix="give name, and parameters: properties, each with its type, and required, a list of their names",
            ) from error

    @classmethod
    def _read(cls, schema: Mapping[str, Any]) -> Function:
        name, parameters = schema["name"], schema["parameters"]
        if not isinstance(name, str) or not name:
            raise ValueError(f"its name is {name!r}; expected a text")
        properties, required = parameters["properties"], parameters.get("required") or []
        _check(parameters, name)
        arguments = {key: _argument(properties[key], f"{name}.{key}") for key in properties}
        if not isinstance(required, list):
            raise ValueError(f"{name} requires {required!r}, which is not a list of names")
        undeclared = [key for key in required if key not in arguments]
        if undeclared:
            raise ValueError(f"{name} requires {undeclared[0]!r}, which is not among its properties")
        return cls(name, arguments, tuple(required), schema)


def type_name(declared: object) -> str:
    """The name of a schema's type: the only type beside null in a list of types, ``any`` for several types.

    Args:
        declared: the schema's entry ``type``.

    Raises:
        ValueError: the entry is neither a text nor a list of texts.
    """
    if isinstance(declared, str):
        return declared
    if not isinstance(declared, list) or not all(isinstance(name, str) for name in declared):
        raise ValueError(f"{declared!r} is not a type")
    types = [name for name in declared if name != "null"]
    return types[0] if len(types) == 1 else "any"


def _argument(schema: Mapping[str, Any], path: str) -> Argument:
    if "type" not in schema:
        raise ValueError(f"{path} has no type")
    items = schema.get("items") or {}
    return Argument(type_name(schema["type"]), type_name(items["type"]) if "type" in items else None)


def _check(schema: Any, path: str) -> None:
    """Raise a ValueError if the schema, at any depth, has another shape than the code that reads it expects."""
    if not isinstance(schema, Mapping):
        raise ValueError(f"{path} is {schema!r}, which is not a schema")
    if "type" in schema:
        type_name(schema["type"])
    properties, choices = schema.get("properties") or {}, schema.get("enum") or []
    if not isinstance(properties, Mapping):
        raise ValueError(f"the properties of {path} are {properties!r}; expected names with schemas")
    if not isinstance(choices, list):
        raise ValueError(f"the enum of {path} is {choices!r}, which is not a list")
    for name, property_schema in properties.items():
        _check(property_schema, f"{path}.{name}")
    if schema.get("items"):
        _check(schema["items"], f"an element of {path}")


class Fault(StrEnum):
    """The kinds of faults of an answer."""

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
    NO_CALL_IN_TURN = "no call in a turn where one is due"
    STATE = "the calls leave another state"
    RESULTS = "a result of the calls that are due is missing"
    STEPS = "more answers with calls in a turn than the limit"
    LIMITS = "the calls took too much time or memory"
    LENGTH = "the conversation no longer fits the model's context"
