"""Parsing of a request's body, from bytes to a pydantic model; every mistake in it is a `Refusal`."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from penchant.serving.refusals import invalid, invalid_field

Model = TypeVar("Model", bound=BaseModel)

MAX_DEPTH = 64
"""Maximum depth of nested objects and lists, which are later processed recursively."""


def parse(kind: type[Model], body: bytes) -> Model:
    """The request in a body.

    Args:
        kind: pydantic model of the request.
        body: the body's bytes.

    Raises:
        Refusal: the body is not JSON in UTF-8, or does not fit the model.
    """
    value = read_json(body)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise invalid_field(problem["type"], problem["msg"], problem["loc"], value) from error


def require_json(content_type: str) -> None:
    """Refuse a body that is not JSON, because a page of another origin can send forms and plain text without consent.

    Raises:
        Refusal: the content type is another one (status 415).
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json":
        raise invalid(
            f"the body is of type '{kind}'; expected Content-Type: application/json",
            code="unsupported_media_type",
            status=415,
        )


def read_json(body: bytes) -> Any:
    """The JSON value of a body, without lone surrogates in its texts.

    Raises:
        Refusal: the body is not JSON in UTF-8, contains half of a surrogate pair, or is nested too deeply.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON in UTF-8: {error}") from error
    _check_values(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check_values(value: object) -> None:
    """Refuse lone surrogates, which no tokenizer reads, and values that are nested too deeply."""
    pending: list[tuple[object, tuple[str, ...]]] = [(value, ())]
    while pending:
        node, path = pending.pop()
        field = ".".join(path) or None
        if len(path) > MAX_DEPTH:
            raise invalid(f"{path[0]} is nested more than {MAX_DEPTH} deep", param=path[0])
        if isinstance(node, str):
            _check_text(node, field)
        elif isinstance(node, dict):
            for name, item in node.items():
                _check_text(name, field)
                pending.append((item, (*path, name)))
        elif isinstance(node, list):
            pending += [(item, (*path, str(index))) for index, item in enumerate(node)]


def _check_text(text: str, field: str | None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise invalid(
            f"{field or 'the body'}: half of a surrogate pair, {code} at character {error.start}; send both halves",
            param=field,
        ) from error
