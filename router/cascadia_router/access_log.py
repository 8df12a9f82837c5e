"""The access log: one JSON object a line for each request that this router has finished or refused.

It says what was decided and how long it took, never a prompt, an answer, a header or a key. It is off until a
policy turns it on, and costs nothing then but the look whether it is.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from random import random

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cascadia_router.http1_request import Request
from cascadia_router.line_writer import LineWriter
from cascadia_router.policy_store import Cascade

__all__ = ["AccessLog", "decision_at_end", "status_of"]

_GOOD = frozenset({"answered", "fallback"})
_DECISION = b'"cascadia":{"stage":"'
_BEFORE_DECISION = len(b'"cascadia":')
_CLIENT_CLOSED = 499
"""What nginx, too, logs where the client left before the answer was complete."""


class _Line(Struct, rename="camel", omit_defaults=True, kw_only=True):
    time: str
    event: str
    port: str
    method: str | UnsetType = UNSET
    path: str | UnsetType = UNSET
    status: int
    outcome: str
    request_id: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    stream: bool | UnsetType = UNSET
    seconds: float | UnsetType = UNSET
    first_byte_seconds: float | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    decision: Raw | dict[str, str | int] | UnsetType = UNSET


_encode = msgspec.json.Encoder().encode
_decoder = json.JSONDecoder()


def decision_at_end(text: bytes) -> bytes:
    """The last `cascadia` object that the text has whole, as JSON; empty if there is none.

    Args:
        text: The end of an answer. Quotes within its strings are escaped, so no string looks like the object.
    """
    at = text.rfind(_DECISION)
    if at < 0:
        return b""
    begin = at + _BEFORE_DECISION
    try:
        _, end = _decoder.raw_decode(text.decode("latin-1"), begin)
    except ValueError:
        return b""
    return text[begin:end]


def status_of(outcome: str, status: int) -> int:
    """HTTP status by which a request ended, as far as its client could see it."""
    return _CLIENT_CLOSED if outcome == "disconnected" else status


class AccessLog:
    """The access log of one router.

    Args:
        writer: Takes the lines.
        scale: Service seconds per wall second.
    """

    def __init__(self, writer: LineWriter, scale: float) -> None:
        self.writer = writer
        self._scale = scale

    def finished(
        self,
        cascade: Cascade,
        http: Request,
        *,
        port: str,
        request_id: str,
        model: str,
        stream: bool,
        outcome: str,
        status: int,
        ended: float,
        first_byte: float,
        decision: bytes,
        rejected: tuple[str, ...] = (),
    ) -> None:
        """Log a request that was begun, if it is drawn; errors always are.

        Args:
            cascade: The policy that governed it.
            http: As it came.
            port: See `Metrics.requests`.
            request_id: Its id.
            model: What it asked for.
            stream: Whether it asked for a stream.
            outcome: See `Metrics.requests`.
            status: HTTP status.
            ended: When it ended, service s (monotonic).
            first_byte: When its answer began, service s; 0 if it did not.
            decision: The `cascadia` object of the answer; empty if it has none.
            rejected: Stages whose answers were rejected, for requests without an answer.
        """
        rate = cascade.access_log
        if rate is None or (outcome in _GOOD and rate < 1.0 and random() >= rate):  # noqa: S311 - a sample
            return
        arrived = http.arrived * self._scale
        told: Raw | dict[str, str | int] = Raw(decision)
        if not decision:
            told = {"plan": cascade.policy.plan_id, "policyRevision": cascade.revision}
            if rejected:
                told["path"] = ">".join(rejected)
        line = _Line(
            time=_now(),
            event="request",
            port=port,
            method="POST",
            path=http.path.decode("ascii", "replace"),
            status=status_of(outcome, status),
            outcome=outcome,
            request_id=request_id,
            key=UNSET if http.client is None else http.client.id,
            model=model[:200],
            stream=stream,
            seconds=round(ended - arrived, 6),
            first_byte_seconds=round(first_byte - arrived, 6) if first_byte else UNSET,
            decision=told,
        )
        self.writer.put(_encode(line) + b"\n")

    def refused(
        self, http: Request | None, *, port: str, request_id: str, status: int, reason: str, now: float
    ) -> None:
        """Log a request that was not begun.

        Args:
            http: As it came; None if not all of it did.
            port: See `Metrics.requests`.
            request_id: Its id, as the answer says it.
            status: HTTP status.
            reason: The error's code.
            now: Service time (monotonic), s.
        """
        line = _Line(
            time=_now(),
            event="request",
            port=port,
            status=status,
            outcome="refused",
            request_id=request_id,
            reason=reason,
        )
        if http is not None:
            line.method = http.method[:16].decode("ascii", "replace")
            line.path = http.path[:200].decode("ascii", "replace")
            line.key = UNSET if http.client is None else http.client.id
            line.seconds = round(now - http.arrived * self._scale, 6)
        self.writer.put(_encode(line) + b"\n")


def _now() -> str:
    return dt.datetime.fromtimestamp(time.time(), dt.UTC).isoformat(timespec="milliseconds")
