"""Spans of one request in one router: one for the request, one below it for each call made for it.

Contexts are W3C's (https://www.w3.org/TR/trace-context/); names and attributes follow OpenTelemetry's
conventions for HTTP and generative AI where these have one, `cascadia.*` where not. Spans are made as OTLP's
JSON has them (https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from time import monotonic, time_ns
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from cascadia_router.completion_body import CompletionRequest, Usage

__all__ = ["CLIENT", "INTERNAL", "Span", "Trace", "Value", "attributes", "operation", "parse_traceparent"]

INTERNAL, SERVER, CLIENT = 1, 2, 3
_ERROR = 2
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TOLD = {
    "stage": "cascadia.stage",
    "score": "cascadia.score",
    "threshold": "cascadia.threshold",
    "path": "cascadia.path",
    "plan": "cascadia.plan_id",
    "policyRevision": "cascadia.policy_revision",
    "ladder": "cascadia.ladder",
    "reason": "cascadia.reason",
}
Value = str | int | float | None


class Span(Struct, rename="camel", omit_defaults=True, kw_only=True):
    """One span, as OTLP's JSON has it: ids in hex, nanoseconds since 1970 as decimal text."""

    trace_id: str
    span_id: str
    parent_span_id: str | UnsetType = UNSET
    trace_state: str | UnsetType = UNSET
    name: str
    kind: int
    start_time_unix_nano: str
    end_time_unix_nano: str = ""
    attributes: list[dict[str, Any]]
    status: dict[str, int] = {}


def attributes(values: dict[str, Value]) -> list[dict[str, Any]]:
    """Attributes as OTLP's JSON has them, without those that are None."""
    return [{"key": key, "value": _value(value)} for key, value in values.items() if value is not None]


def _value(value: str | float) -> dict[str, str | float]:
    if isinstance(value, str):
        return {"stringValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"doubleValue": value}


def parse_traceparent(value: bytes) -> tuple[str, str, bool] | None:
    """Trace id, span id and whether the caller samples; None if it is no valid context."""
    match = _TRACEPARENT.fullmatch(value)
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5] is not None):
        return None
    trace_id, span_id = match[2].decode(), match[3].decode()
    if not (trace_id.strip("0") and span_id.strip("0")):
        return None
    return trace_id, span_id, bool(int(match[4], 16) & 1)


class Trace:
    """What is told of one request that is sampled.

    Args:
        keep: Takes a span that has ended.
        arrived: Machine's monotonic clock at the request's first byte, s.
        context: Trace id and span id of the caller; None to begin a trace.
        state: The caller's `tracestate`.
    """

    __slots__ = ("_keep", "_open", "_span", "_state")

    def __init__(
        self, keep: Callable[[Span], None], arrived: float, context: tuple[str, str] | None, state: bytes
    ) -> None:
        self._keep = keep
        self._state = state
        self._open: Span | None = None
        trace_id, parent = context or (secrets.token_hex(16), "")
        self._span = Span(
            trace_id=trace_id,
            span_id=secrets.token_hex(8),
            parent_span_id=parent or UNSET,
            trace_state=state.decode("ascii", "replace") if state else UNSET,
            name="",
            kind=SERVER,
            start_time_unix_nano=str(time_ns() - int((monotonic() - arrived) * 1e9)),
            attributes=[],
        )

    def begin(self, name: str, kind: int, told: dict[str, Value]) -> None:
        """A call begins; one that is still open has been lost."""
        self.ended("lost")
        self._open = Span(
            trace_id=self._span.trace_id,
            span_id=secrets.token_hex(8),
            parent_span_id=self._span.span_id,
            name=name,
            kind=kind,
            start_time_unix_nano=str(time_ns()),
            attributes=attributes(told),
        )

    def context_lines(self) -> bytes:
        """Header lines that go with the call that has begun."""
        span = self._open or self._span
        lines = b"traceparent: 00-%s-%s-01\r\n" % (span.trace_id.encode(), span.span_id.encode())
        return lines + b"tracestate: %s\r\n" % self._state if self._state else lines

    def took(self, usage: Usage | None) -> None:
        """The call's answer took so many tokens."""
        if self._open is not None and usage is not None:
            self._open.attributes += attributes(
                {
                    "gen_ai.usage.input_tokens": usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": usage.completion_tokens,
                }
            )

    def ended(self, error: str = "") -> None:
        """The call, if one is open, has ended; the error says what became of it."""
        span, self._open = self._open, None
        if span is None:
            return
        span.end_time_unix_nano = str(time_ns())
        if error:
            span.attributes += attributes({"error.type": error})
            span.status = {"code": _ERROR}
        self._keep(span)

    def finish(
        self, request: CompletionRequest, *, request_id: str, port: str, outcome: str, status: int, decision: bytes
    ) -> None:
        """The request has ended in this router.

        Args:
            request: What was asked.
            request_id: Its id.
            port: See `Metrics.requests`.
            outcome: See `Metrics.requests`.
            status: HTTP status.
            decision: The `cascadia` object of the answer; empty if it has none.
        """
        self.ended("abandoned")
        path = request.path.decode("ascii", "replace")
        failed = outcome in {"failed", "deadline", "interrupted"}
        told: dict[str, Value] = {
            "http.request.method": "POST",
            "url.path": path,
            "http.response.status_code": status,
            "error.type": outcome if failed else None,
            "gen_ai.operation.name": operation(request),
            "gen_ai.request.model": request.model[:200],
            "cascadia.request_id": request_id,
            "cascadia.port": port,
            "cascadia.outcome": outcome,
        }
        said = _read(decision)
        told |= {key: said.get(name) for name, key in _TOLD.items()}
        usage = said.get("usage", {})
        own = usage.get("stages", {}).get(said.get("stage"), {})
        told |= {
            "gen_ai.response.model": said.get("stage"),
            "gen_ai.usage.input_tokens": own.get("promptTokens"),
            "gen_ai.usage.output_tokens": own.get("completionTokens"),
            "cascadia.usage.input_tokens": usage.get("promptTokens"),
            "cascadia.usage.output_tokens": usage.get("completionTokens"),
        }
        span = self._span
        span.name = f"POST {path}"
        span.attributes = attributes(told)
        span.status = {"code": _ERROR} if failed else {}
        span.end_time_unix_nano = str(time_ns())
        self._keep(span)


def operation(request: CompletionRequest) -> str:
    """`gen_ai.operation.name` of a request."""
    return "chat" if request.chat else "text_completion"


def _read(decision: bytes) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(decision)
    except msgspec.DecodeError:
        return {}
    return said if isinstance(said, dict) else {}
