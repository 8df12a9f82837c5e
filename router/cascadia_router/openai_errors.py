"""Errors in the shape that OpenAI clients expect: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import msgspec

__all__ = ["DEADLINE_CODE", "ERROR_EVENT", "error_body", "error_event"]

ERROR_EVENT = b'data: {"error":'
"""How the event begins that stands for an answer."""
DEADLINE_CODE = b'"code":"deadline_exceeded"'

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, *, code: str, param: str | None = None) -> bytes:
    """Return the JSON body of an error.

    Args:
        status: HTTP status, which settles the error's `type`.
        message: What is wrong and what to do, one sentence or two.
        code: Stable machine-readable word.
        param: Name of the request's field at fault, if one is.
    """
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(body: bytes) -> bytes:
    """Return an error body as the server-sent event that ends a stream whose status is already sent."""
    return b"data: " + body.replace(b"\n", b" ") + b"\n\n"
