"""Errors in the shape that OpenAI clients expect: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["DEADLINE_CODE", "ERROR_EVENT", "engine_error", "error_body", "error_event"]

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


def engine_error(status: int, body: bytes) -> bytes:
    """Return an engine's refusal (4xx) in the same shape, whatever shape it has.

    llama.cpp and vLLM write `{"error": {...}}`, the former without `param`; SGLang writes the inner object alone.
    What it says of `message`, `type`, `param` and `code` is kept, and so are other fields.
    """
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = None
    if isinstance(said, dict) and isinstance(said.get("error"), dict | str):
        said = said["error"]
    if isinstance(said, str):
        said = {"message": said}
    if not isinstance(said, dict) or not isinstance(said.get("message"), str):
        text = body.decode("utf-8", "replace").strip()
        return error_body(status, text or "The engine refused the request.", code="refused_by_engine")
    said.pop("object", None)
    code = said.get("code")
    kind = _TYPES.get(status, "invalid_request_error")
    whole = {"type": kind, "param": None, **said, "code": None if code is None else str(code)}
    return msgspec.json.encode({"error": whole})


def error_event(body: bytes) -> bytes:
    """Return an error body as the server-sent event that ends a stream whose status is already sent."""
    return b"data: " + body.replace(b"\n", b" ") + b"\n\n"
