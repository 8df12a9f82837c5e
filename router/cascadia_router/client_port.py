"""The clients' port: OpenAI's API."""

from __future__ import annotations

import contextlib
import math
from typing import Final

import msgspec

from cascadia_router.arrival import Arrival
from cascadia_router.balancing import choose
from cascadia_router.bounds import BoundError, read_bounds
from cascadia_router.clients import Client
from cascadia_router.completion_body import BodyError, CompletionRequest
from cascadia_router.conversation import SESSION, session_key
from cascadia_router.exchange import Exchange
from cascadia_router.express import Express
from cascadia_router.http1_request import Answering, Request
from cascadia_router.node import Node
from cascadia_router.policy_store import Cascade
from cascadia_router.port import COMPLETIONS, RETRY_SOON, Port
from cascadia_router.responses_connection import ResponsesConnection
from cascadia_router.responses_request import chat_request
from cascadia_router.stage import Stage
from cascadia_router.trace import Trace
from cascadia_router.waiting_room import WaitingRoom
from cascadia_router.window import Slice

__all__ = ["ClientPort"]

_CHAT: Final = b"/v1/chat/completions"
_RESPONSES: Final = b"/v1/responses"
_NO_HEADERS: Final[dict[bytes, bytes]] = {}
SESSION_BYTES = 16_384
"""Bytes of a conversation's beginning by which it is known where its client does not name it."""


class ClientPort(Port):
    """OpenAI's API for the cascade as one model."""

    name = "client"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._room = node.room = WaitingRoom(self._begin_waiting, self._refuse_waiting)

    def expects(self, target: bytes, authorization: bytes) -> bool:  # noqa: ARG002
        """See `Application`."""
        clients = self.node.clients
        if clients is None or not clients.keys.known or clients.of(authorization) is not None:
            return True
        self.node.metrics.refused["unauthorized"] += 1
        return False

    def handle(self, connection: Answering, request: Request) -> None:
        """See `Application`."""
        path = request.path
        clients = self.node.clients
        if clients is not None and path != b"/healthz":
            client = request.client = clients.of(request.authorization)
            if client is None:
                self._refuse_stranger(connection, request, known=clients.keys.known)
                return
        if path in COMPLETIONS:
            if request.method == b"POST":
                self._complete(connection, request)
            else:
                self._refuse(connection, request, 405, "Use POST.", "method_not_allowed", head=b"allow: POST\r\n")
        elif path == _RESPONSES:
            self._respond(connection, request)
        elif path == b"/healthz" or path == b"/v1/models" or path.startswith(b"/v1/models/"):
            if request.method not in {b"GET", b"HEAD"}:
                self._refuse(connection, request, 405, "Use GET.", "method_not_allowed", head=b"allow: GET\r\n")
            elif path == b"/healthz":
                connection.respond(200, b"ok\n", content_type=b"text/plain")
            else:
                self._models(connection, request, path[len(b"/v1/models/") :].decode("utf-8", "replace"))
        elif path.startswith(b"/v1/responses/"):
            self._refuse(connection, request, 404, "Responses are not stored: there is none to find.", "not_found")
        else:
            self._refuse(connection, request, 404, f"There is nothing at {path[:200].decode('latin-1')}.", "not_found")

    def _refuse_stranger(self, connection: Answering, request: Request, *, known: bool) -> None:
        """Refuse a request without a valid key, whatever it asks for."""
        refused = self.node.metrics.refused
        if not known:
            refused["keys_unknown"] += 1
            message = "The router has not been able to read the API keys yet: try again."
            self._refuse(connection, request, 503, message, "api_keys_unavailable", head=RETRY_SOON)
            return
        refused["unauthorized"] += 1
        message = (
            "The API key is not valid: it may have been revoked."
            if request.authorization
            else "An API key is needed: send it as `Authorization: Bearer KEY`."
        )
        self._refuse(connection, request, 401, message, "invalid_api_key", head=b"www-authenticate: Bearer\r\n")

    def _models(self, connection: Answering, request: Request, name: str) -> None:
        cascade = self.node.policies.current
        names = []
        if cascade is not None:
            stages = list(cascade.by_name) if cascade.policy.pin_stages else []
            names = [cascade.policy.cascade, *(stage for stage in stages if stage != cascade.policy.cascade)]
        models = [{"id": each, "object": "model", "created": 0, "owned_by": "cascadia"} for each in names]
        if not name:
            connection.respond(200, msgspec.json.encode({"object": "list", "data": models}))
        elif name in names:
            connection.respond(200, msgspec.json.encode(models[names.index(name)]))
        else:
            self._refuse(
                connection, request, 404, f"There is no model {name[:200]!r}.", "model_not_found", param="model"
            )

    def _respond(self, connection: Answering, request: Request) -> None:
        """Answer by the Responses API: within the router the request is a chat completion."""
        if request.method != b"POST":
            self._refuse(connection, request, 405, "Use POST.", "method_not_allowed", head=b"allow: POST\r\n")
            return
        try:
            translated = chat_request(request.body)
        except BodyError as error:
            piece = self.node.window.slice(self.node.now())
            piece.arrivals += 1
            piece.refused += 1
            self._refuse_body(connection, request, error)
            return
        request.path, request.body = _CHAT, translated.body
        self._complete(ResponsesConnection(connection, translated), request)

    def _complete(self, connection: Answering, request: Request) -> None:
        node = self.node
        cascade: Cascade | None = node.policies.entry
        now = node.now()
        window = node.window
        piece = window.newest if now < window.until else window.slice(now)
        piece.arrivals += 1
        if cascade is None:
            piece.failures += 1
            self._turn_away(connection, request, cascade)
        elif request.client is not None and not self._admit(connection, request, request.client, cascade, now):
            piece.refused += 1
        elif len(node.exchanges) >= cascade.max_in_flight or self._room.waiting:
            self._wait(connection, request, cascade, piece, now)
        else:
            self._begin(connection, request, cascade, piece, now)

    def _wait(self, connection: Answering, request: Request, cascade: Cascade, piece: Slice, now: float) -> None:
        """Let a request wait for room, or refuse it."""
        overload, room = cascade.policy.overload, self._room
        if not room.has_room(request, overload.max_queued):
            piece.refused += 1
            self._turn_away(connection, request, cascade, room.retry_seconds(self.node.scale))
            return
        seconds = overload.max_queue_seconds
        if request.traced:
            with contextlib.suppress(BoundError):  # it is told when its turn comes
                seconds = min(seconds, read_bounds(request.headers, cascade, None).seconds)
        self.node.metrics.queued += 1
        room.enter(connection, request, now + seconds)

    def _begin_waiting(self, connection: Answering, request: Request) -> None:
        """Begin a request that has waited; it has been counted."""
        now, cascade = self.node.now(), self.node.policies.entry
        assert cascade is not None
        self._begin(connection, request, cascade, self.node.window.slice(now), now)

    def _refuse_waiting(self, connection: Answering, request: Request) -> None:
        """Refuse a request that has waited too long."""
        node = self.node
        node.window.slice(node.now()).refused += 1
        node.metrics.refused["queue_timeout"] += 1
        head = b"retry-after: %d\r\n" % self._room.retry_seconds(node.scale)
        message = "The router has had no room for the request in time: try again later."
        self._refuse(connection, request, 429, message, "too_many_requests", head=head)

    def _begin(self, connection: Answering, request: Request, cascade: Cascade, piece: Slice, now: float) -> None:
        node = self.node
        try:
            body = CompletionRequest(request.path, request.body)
        except BodyError as error:
            piece.refused += 1
            self._refuse_body(connection, request, error)
            return
        client = request.client
        if client is not None:
            client.take(now, body.tokens)
            if client.limited:
                connection.own_lines = client.lines(now, node.scale)
        trace = None if cascade.tracing is None else node.tracer.begin(cascade.tracing, request, enters=True)
        stage, own = cascade.judged, node.own
        if (
            stage is not None
            and trace is None
            and body.model == cascade.name
            and not (own is None or body.stream or body.needs or request.traced)
            and choose(stage.live, now) is own
            and not own.breaker.open_until
            and cascade.stages[1].live.pairs
        ):
            piece.requests += 1
            Express(node, connection, request, body, cascade, node.new_request_id(), stage, own, now)
        else:
            self._exchange(connection, request, body, cascade, piece, trace)

    def _admit(self, connection: Answering, request: Request, client: Client, cascade: Cascade, now: float) -> bool:
        """Whether a client's limits let its request in; if not, it is told when to come again."""
        node = self.node
        # An entry router without an engine is the only way in; otherwise every leader is one.
        client.follow(cascade.policy, 1.0 if node.own is None else 1.0 / cascade.leaders, now)
        denial = client.denial(now)
        if denial is None:
            return True
        node.metrics.refused["rate_limited"] += 1
        wait = max(1, math.ceil(denial.seconds / node.scale))
        message = f"This key's {denial.of} of the last minute are used up: try again in {wait} s."
        head = b"retry-after: %d\r\n%s" % (wait, client.lines(now, node.scale))
        self._refuse(connection, request, 429, message, "rate_limit_exceeded", head=head)
        return False

    def _exchange(
        self,
        connection: Answering,
        request: Request,
        body: CompletionRequest,
        cascade: Cascade,
        piece: Slice,
        trace: Trace | None,
    ) -> None:
        node, policy = self.node, cascade.policy
        pinned: Stage | None = None
        if body.model != policy.cascade:
            pinned = cascade.by_name.get(body.model) if policy.pin_stages else None
            if pinned is None:
                piece.refused += 1
                node.metrics.refused["unknown_model"] += 1
                message = f"There is no model {body.model[:200]!r}: ask for {policy.cascade!r}."
                self._refuse(connection, request, 404, message, "model_not_found", param="model")
                return
        headers = request.headers if request.traced else _NO_HEADERS
        try:
            bounds = read_bounds(headers, cascade, pinned)
        except BoundError as error:
            piece.refused += 1
            node.metrics.refused["bad_bound"] += 1
            self._refuse(connection, request, 400, str(error), "invalid_header", param=error.header)
            return
        if pinned is not None:
            piece.arrivals -= 1  # a pinned request, a calibration's mostly, is no part of the cascade's workload
        session, first = None, 0
        if cascade.latch_seconds is not None and pinned is None:
            client = request.client.id if request.client is not None else ""
            session = session_key(body.content, SESSION_BYTES, headers.get(SESSION), client)
            first = self._latched(cascade, session, bounds.end)
        arrival = Arrival(
            connection,
            request,
            body,
            cascade,
            request_id=self._named(headers.get(b"x-request-id", b"")).decode(),
            remaining=bounds.seconds,
            escalations_left=policy.max_escalations,
            pinned=pinned is not None,
            end=bounds.end,
            session=session,
            trace=trace,
        )
        Exchange(node, arrival).enter(pinned, first)

    def _latched(self, cascade: Cascade, session: int, end: int) -> int:
        """Index of the stage that a conversation stays with; 0 if it is free."""
        node = self.node
        assert cascade.latch_seconds is not None
        name = node.latch.stage_of(session, node.now(), cascade.latch_seconds)
        stage = cascade.by_name.get(name) if name is not None else None
        if stage is None or stage.index >= end:
            return 0
        node.metrics.latched[stage.name] += 1
        return stage.index
