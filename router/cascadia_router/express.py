"""The short way of a request, as long as all goes as it nearly always does.

The engine beside this router is asked for an answer that comes whole, is scored, and is good enough: such
a request needs little of what an `Exchange` keeps. At anything else (a fault, a low score, a stream, a
client that leaves, a deadline) an `Exchange` takes over where this one stands, and nothing of what it
decides is repeated here.
"""

from __future__ import annotations

from random import random
from time import monotonic

import msgspec

from cascadia_router.arrival import Arrival
from cascadia_router.balancing import Replica
from cascadia_router.completion_body import CompletionRequest
from cascadia_router.exchange import Exchange
from cascadia_router.http1_request import Answering, Request
from cascadia_router.node import Node
from cascadia_router.policy_store import Cascade
from cascadia_router.response_sink import Fault
from cascadia_router.shadow import Accepted
from cascadia_router.stage import Stage
from cascadia_router.whole_answer import WholeAnswer

__all__ = ["Express"]


class Express:
    """One request whose answer our engine is expected to give, whole and good enough."""

    __slots__ = (
        "_asked_at",
        "_call",
        "_cascade",
        "_connection",
        "_http",
        "_node",
        "_replica",
        "_request",
        "_request_id",
        "_stage",
    )

    def __init__(
        self,
        node: Node,
        connection: Answering,
        http: Request,
        request: CompletionRequest,
        cascade: Cascade,
        request_id: bytes,
        stage: Stage,
        own: Replica,
        now: float,
    ) -> None:
        """Ask the engine.

        Args:
            node: The router.
            connection: Where the request came from.
            http: As it came.
            request: Its body.
            cascade: The policy in force, which governs it.
            request_id: Its id.
            stage: This router's stage, the first of the cascade, with a threshold and a stage after it.
            own: The replica beside this router, chosen among the stage's; its circuit breaker is closed.
            now: Service time (monotonic), s.
        """
        self._node = node
        self._connection = connection
        self._http = http
        self._request = request
        self._cascade = cascade
        self._request_id = request_id
        self._stage = stage
        self._replica = own
        self._asked_at = now
        node.took_on(self)
        connection.in_flight = self
        own.outstanding += 1
        body = request.for_engine(stage.served_model, score=True)
        upstream = own.upstream
        message = (
            b"POST %s HTTP/1.1\r\n%scontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %s\r\n\r\n%s"
            % (request.path, upstream.host_line, len(body), request_id, body)
        )
        self._call = upstream.send(message, self)

    # -- the engine's side ------------------------------------------------------------------------

    def response_whole(self, message: bytes, body: bytes) -> None:  # noqa: ARG002
        """See `ResponseSink`."""
        request, stage, cascade = self._request, self._stage, self._cascade
        try:
            answer = WholeAnswer(body, request.wants_logprobs, cascade.gate_tokens)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.response_fault(Fault.MALFORMED)
            return
        score = cascade.scorer.at_once(request, answer)
        if not isinstance(score, float) or stage.threshold is None or score < stage.threshold:
            self._hand_over().weigh(answer, score)
            return
        node, replica, settlement, window = self._node, self._replica, self._node.settlement, self._node.window
        now = monotonic() * node.scale
        replica.outstanding -= 1
        if replica.breaker.failures:
            replica.breaker.succeeded()
        node.let_go(self)
        said = stage.at_once
        decision = said.document(score, answer.usage)
        self._connection.respond(
            200,
            answer.replay(decision),
            b"x-request-id: %s\r\n%s%s" % (self._request_id, cascade.plan_line, said.lines(score)),
        )
        piece = window.newest if now < window.until else window.slice(now)
        piece.accepted += 1
        settlement.answers.append((self._asked_at, now, answer.usage, score))
        client, usage = self._http.client, answer.usage
        if client is not None and usage is not None:
            client.settle(now, request.tokens, usage.prompt_tokens + usage.completion_tokens)
        settlement.ends.append((stage.answered, self._http.arrived * node.scale, now, now))
        if cascade.access_log is not None:
            node.access_log.finished(
                cascade,
                self._http,
                port="client",
                request_id=self._request_id.decode(),
                model=request.model,
                stream=False,
                outcome="answered",
                status=200,
                ended=now,
                first_byte=now,
                decision=decision,
            )
        if cascade.shadow_share and random() < cascade.shadow_share:  # noqa: S311 - a sample, not a secret
            node.shadows.ask(
                Accepted(
                    self._request_id.decode(), request, cascade, stage, len(cascade.stages), score, answer.usage, body
                )
            )
        if random() < cascade.sample_rate:  # noqa: S311 - a sample, not a secret
            node.keep_sample(now, self._request_id.decode(), stage.name, score, answer.usage, cascade.sample_rate)

    def response_head(self, status: int, headers: dict[bytes, bytes], length: int | None) -> None:
        """See `ResponseSink`: the answer does not come whole."""
        self._hand_over().carry_on(self._call).response_head(status, headers, length)

    def response_body(self, data: bytes) -> None:
        """See `ResponseSink`: never called, for after the head another takes the answer."""

    def response_pump(self) -> None:
        """See `response_body`."""

    def response_end(self) -> None:
        """See `response_body`."""

    def response_fault(self, fault: Fault) -> None:
        """See `ResponseSink`."""
        self._hand_over().carry_on(self._call).response_fault(fault)

    @property
    def entered(self) -> float | None:
        """See `Entered`."""
        return self._http.arrived * self._node.scale

    # -- time and the client ----------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """See `Held`."""
        if now >= self._http.arrived * self._node.scale + self._cascade.policy.request_timeout_seconds:
            self._carry_on().tick(now)

    def client_gone(self) -> None:
        """See `InFlight`."""
        self._carry_on().client_gone()

    def client_paused(self) -> None:
        """See `InFlight`."""
        self._carry_on().client_paused()

    def client_resumed(self) -> None:
        """See `InFlight`."""

    def _carry_on(self) -> Exchange:
        """Let an exchange go on from here, with the call to the engine as it is."""
        exchange = self._hand_over()
        exchange.carry_on(self._call)
        return exchange

    def _hand_over(self) -> Exchange:
        """Let an exchange take this one's place."""
        policy = self._cascade.policy
        arrival = Arrival(
            self._connection,
            self._http,
            self._request,
            self._cascade,
            request_id=self._request_id.decode(),
            remaining=policy.request_timeout_seconds,
            escalations_left=policy.max_escalations,
        )
        exchange = Exchange(self._node, arrival)
        self._node.let_go(self)
        exchange.take_over(self._stage, self._replica, self._asked_at)
        return exchange
