"""Answers with an error, in the OpenAI protocol's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penchant.serving.neutral import refusal_text


class Refusal(Exception):
    """An answer with an error.

    Args:
        status: of HTTP.
        kind: the protocol's `type`, as invalid_request_error.
        param: the parameter at fault.
        code: for programs.
    """

    def __init__(self, status: int, kind: str, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.kind, self.message, self.param, self.code = status, kind, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> Refusal:
    """The client's mistake."""
    return Refusal(status, "invalid_request_error", message, param=param, code=code)


def invalid_field(kind: str, message: str, path: Sequence[str | int], body: object) -> Refusal:
    """A field of a request that is not as the protocol has it.

    Args:
        kind: pydantic's type of the error, as in ``extra_forbidden``.
        message: pydantic's.
        path: of the field in the body; members of unions stand in it too.
    """
    field = field_name(path, body, kind == "missing")
    if kind == "extra_forbidden":
        return invalid(refusal_text(field), param=field, code="unsupported_parameter")
    return invalid(f"{field}: {message}" if field else message, param=field or None)


def field_name(path: Sequence[str | int], body: object, missing: bool) -> str:
    """The field of a request that is at fault, as in ``messages.0.content``; a union's members are no fields."""
    parts: list[str] = []
    for part in path:
        try:
            body = body[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            if parts and not missing:
                break
        parts.append(str(part))
    return ".".join(parts)
