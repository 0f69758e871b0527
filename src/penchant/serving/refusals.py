"""Error responses in the OpenAI protocol's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penchant.serving.neutral import refusal_text


class Refusal(Exception):
    """An error response to a request.

    Args:
        status: HTTP status.
        kind: the protocol's `type`, such as invalid_request_error.
        message: description of the error for people.
        param: name of the parameter that is wrong.
        code: identifier of the error for programs.
    """

    def __init__(self, status: int, kind: str, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.kind, self.message, self.param, self.code = status, kind, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The response's JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> Refusal:
    """The refusal of an invalid request."""
    return Refusal(status, "invalid_request_error", message, param=param, code=code)


def invalid_field(kind: str, message: str, path: Sequence[str | int], body: object) -> Refusal:
    """The refusal of a request with a field that does not follow the protocol.

    Args:
        kind: pydantic's type of the error, such as ``extra_forbidden``.
        message: pydantic's message.
        path: pydantic's path of the field in the body, which contains members of unions too.
        body: the body's JSON value.
    """
    field = field_name(path, body, kind == "missing")
    if kind == "extra_forbidden":
        return invalid(refusal_text(field), param=field, code="unsupported_parameter")
    return invalid(f"{field}: {message}" if field else message, param=field or None)


def field_name(path: Sequence[str | int], body: object, missing: bool) -> str:
    """Name of the wrong field of a request, as in ``messages.0.content``, without the members of unions."""
    parts: list[str] = []
    for part in path:
        try:
            body = body[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            if parts and not missing:
                break
        parts.append(str(part))
    return ".".join(parts)
