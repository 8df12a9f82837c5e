"""Traces of one router: which requests are sampled, and their spans on the way to the collector.

Spans go as OTLP's JSON over HTTP, in batches, off the requests' path. They wait in a bounded queue; what there
is no room for, and what the collector does not take in time, is dropped and counted.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, deque
from functools import partial
from random import random

import msgspec
from msgspec import UNSET

from cascadia_api.policy import EndpointPolicy, TracingPolicy
from cascadia_router.collector_headers import CollectorHeaders
from cascadia_router.http1_request import Request
from cascadia_router.scorers.endpoint import Endpoint, Reply
from cascadia_router.scorers.surroundings import Surroundings
from cascadia_router.trace import Span, Trace, Value, attributes, parse_traceparent

__all__ = ["Tracer"]

MOST_SPANS = 2048
"""Spans that wait for the collector, those under way included."""
BATCH = 256
"""Spans of one call to the collector."""
EXPORT_SECONDS = 10.0
"""Longest time that the collector may take for a batch, wall s."""

_encode = msgspec.json.Encoder().encode


class Tracer:
    """The traces of one router.

    Args:
        about: Attributes of the router, as OpenTelemetry's resource.
        count: Spans by what became of them: `exported`, `dropped`.
        secrets: Folder with the files of the collector's headers and certificates; None if there is none.
    """

    def __init__(self, about: dict[str, Value], count: Counter[str], secrets: str | None = None) -> None:
        self._resource = {"attributes": attributes({"service.name": "cascadia-router", **about})}
        self._count = count
        self._spans: deque[msgspec.Raw] = deque()  # as JSON: a tenth of the memory
        self._under_way = 0
        self._endpoint: Endpoint | None = None
        self._place: EndpointPolicy | None = None
        self._surroundings = Surroundings(secrets=secrets)
        self._headers = CollectorHeaders(secrets, os.environ)
        self._idle = asyncio.Event()

    def begin(self, policy: TracingPolicy | None, http: Request, *, enters: bool) -> Trace | None:
        """Begin to trace a request if it is sampled: as the caller says, else as it is drawn.

        Args:
            policy: The policy's; None traces nothing.
            http: The request.
            enters: Whether it enters the cascade here, so that a trace may begin here, too.
        """
        if policy is None:
            return None
        headers = http.headers if http.traced else {}
        context = parse_traceparent(headers.get(b"traceparent", b""))
        if context is not None:
            trace_id, span_id, sampled = context
            state = headers.get(b"tracestate", b"")
            return Trace(self._keep, http.arrived, (trace_id, span_id), state) if sampled else None
        if not enters or random() >= policy.share:  # noqa: S311 - a sample, not a secret
            return None
        return Trace(self._keep, http.arrived, None, b"")

    def _keep(self, span: Span) -> None:
        if len(self._spans) + self._under_way < MOST_SPANS:
            self._spans.append(msgspec.Raw(_encode(span)))
        else:
            self._count["dropped"] += 1

    def flush(self, policy: TracingPolicy | None) -> None:
        """Send a batch to the collector, unless one is under way."""
        if not self._spans or self._under_way:
            return
        if policy is None:
            self._count["dropped"] += len(self._spans)
            self._spans.clear()
            return
        place = EndpointPolicy(url=policy.endpoint, ca=policy.ca)
        if self._endpoint is None or self._place != place:
            self.close()
            self._place = place
            self._endpoint = Endpoint(place, self._surroundings, deadline=EXPORT_SECONDS, concurrency=1)
        batch = [self._spans.popleft() for _ in range(min(BATCH, len(self._spans)))]
        headers = self._headers.lines(None if policy.headers is UNSET else policy.headers)
        if headers is None:
            self._count["dropped"] += len(batch)
            return
        self._under_way = len(batch)
        self._idle.clear()
        scope = {"scope": {"name": "cascadia_router"}, "spans": batch}
        body = msgspec.json.encode({"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]})
        self._endpoint.post(b"/v1/traces", body, headers, partial(self._sent, len(batch)))

    def _sent(self, spans: int, reply: Reply) -> None:
        self._count["exported" if isinstance(reply, bytes) else "dropped"] += spans
        self._under_way = 0
        self._idle.set()

    async def finish(self, policy: TracingPolicy | None, seconds: float) -> None:
        """Send what is left, for at most so long (wall s); what is not sent by then is lost."""
        try:
            async with asyncio.timeout(seconds):
                while self._spans or self._under_way:
                    self.flush(policy)
                    if self._under_way:
                        await self._idle.wait()
        except TimeoutError:
            self._count["dropped"] += len(self._spans) + self._under_way
        self.close()

    def close(self) -> None:
        """Close the connections to the collector."""
        if self._endpoint is not None:
            self._endpoint.upstream.close()
            self._endpoint = None
