"""The stage port: what other routers ask of this one."""

from __future__ import annotations

import time

from cascadia_router.arrival import Arrival
from cascadia_router.completion_body import BodyError, CompletionRequest
from cascadia_router.exchange import Exchange
from cascadia_router.http1_request import Answering, Request
from cascadia_router.port import COMPLETIONS, Port
from cascadia_router.signing import SignatureError

__all__ = ["PeerPort"]


class PeerPort(Port):
    """The stage port: requests that another router has chosen this one for; and whether this one lives."""

    name = "peer"

    def handle(self, connection: Answering, request: Request) -> None:
        """See `Application`."""
        node = self.node
        if request.path == b"/healthz" and request.method == b"GET":
            connection.respond(200, b"ok\n", content_type=b"text/plain")
            return
        try:
            hop = node.secrets.verify(request.headers, request.path, request.body, time.time())
        except SignatureError as error:
            node.metrics.refused["unsigned"] += 1
            message = f"This port is for the cascade's own routers: {error}."
            self._refuse(connection, request, 401, message, "invalid_signature")
            return
        if request.path not in COMPLETIONS or request.method != b"POST":
            self._refuse(connection, request, 404, "There is nothing here.", "not_found")
            return
        cascade = node.policies.at(hop.revision, hop.rung)
        if cascade is None or len(node.exchanges) >= cascade.max_in_flight:
            self._turn_away(connection, request, cascade)
            return
        stage, last = cascade.by_name.get(hop.stage), cascade.by_name.get(hop.max_stage)
        if hop.stage != node.config.stage or stage is None or node.own is None:
            node.metrics.refused["wrong_stage"] += 1
            message = f"This is no router of stage {hop.stage!r}."
            self._refuse(connection, request, 503, message, "wrong_stage")
            return
        if hop.remaining <= 0:
            node.metrics.refused["too_late"] += 1
            self._refuse(connection, request, 504, "The request's deadline has passed.", "deadline_exceeded")
            return
        if hop.shadow and node.is_busy:
            node.metrics.refused["shadow"] += 1
            self._refuse(connection, request, 503, "The router has no time for a comparison.", "busy")
            return
        try:
            body = CompletionRequest(request.path, request.body)
        except BodyError as error:
            self._refuse_body(connection, request, error)
        else:
            arrival = Arrival(
                connection,
                request,
                body,
                cascade,
                request_id=hop.request_id,
                remaining=hop.remaining,
                escalations_left=hop.escalations_left,
                port="shadow" if hop.shadow else "peer",
                path=hop.path,
                spent=hop.spent,
                lost=hop.lost,
                pinned=hop.pinned,
                end=last.index + 1 if last is not None else None,
                trace=node.tracer.begin(cascade.tracing, request, enters=False),
            )
            Exchange(node, arrival).process(stage, node.own)
