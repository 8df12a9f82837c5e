"""What is kept of a request to tell of it: to the metrics, to its client's key, to the access log and the trace."""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

from cascadia_router.access_log import decision_at_end, status_of
from cascadia_router.arrival import Arrival
from cascadia_router.clients import Client
from cascadia_router.completion_body import Usage
from cascadia_router.decision import tokens_said
from cascadia_router.judging import Judged
from cascadia_router.node import Node
from cascadia_router.reply import Reply
from cascadia_router.trace import CLIENT, Trace, Value, operation

__all__ = ["Observed"]

_TRACE_HEADERS: Final = (b"traceparent", b"tracestate")
_ANSWERED: Final = frozenset({"answered", "fallback"})
_MOST_TAIL: Final = 4096
"""Of a relayed answer's end, B: its `cascadia` object is there."""


class Observed(Judged):
    """The part of an `Exchange` that tells of the request.

    Attributes:
        answered_by: Stage whose answer the client gets; empty until known.
    """

    __slots__ = (
        "_arrived",
        "_connection",
        "_decision",
        "_http",
        "_port",
        "_reply_begun",
        "_session",
        "_status",
        "_tail",
        "_taken",
        "_watched",
        "answered_by",
    )

    def __init__(self, node: Node, arrival: Arrival) -> None:
        super().__init__(node, arrival)
        self._arrived = arrival.http.arrived * node.scale
        self._connection = arrival.connection
        self._http = arrival.http
        self._port = arrival.port
        self._session = arrival.session
        self.answered_by = ""
        self._taken: int | None = None
        self._tail = b""
        # Somebody is told what was decided.
        self._watched = arrival.cascade.access_log is not None or arrival.trace is not None
        self._status = 200  # of the answer
        self._decision = b""  # the `cascadia` object of the answer, once it is complete
        self._reply_begun: Reply | None = None

    @property
    def _reply(self) -> Reply:
        """The answer, unless it can be sent in one piece at once: most can."""
        reply = self._reply_begun
        if reply is None:
            reply = self._reply_begun = Reply(
                self.node,
                self._connection,
                self._answer_lines(),
                stream=self.request.stream,
                to_peer=self._port != "client",
                arrived=self._arrived,
            )
        return reply

    @property
    def entered(self) -> float | None:
        """See `Entered`."""
        return self._arrived if self._port == "client" and not self.pinned else None

    @abstractmethod
    def tick(self, now: float) -> None:
        """See `Held`."""

    def traced_lines(self) -> bytes:
        """Header lines that go with the request to engines and routers."""
        own = b"x-request-id: %s\r\n" % self.request_id.encode()
        if self._trace is not None:
            self._begin_span(self._trace)
            return own + self._trace.context_lines()
        if not self._http.traced:
            return own
        headers = self._http.headers
        return own + b"".join(b"%s: %s\r\n" % (name, headers[name]) for name in _TRACE_HEADERS if name in headers)

    def _answer_lines(self) -> bytes:
        """Header lines that come with every answer."""
        return b"x-request-id: %s\r\n%s" % (self.request_id.encode(), self.cascade.plan_line)

    # -- what the client's key is charged -----------------------------------------------------------

    def _count_tokens(self, usage: Usage | None) -> None:
        """Our engine has said what its answer took."""
        if usage is not None:
            self._taken = usage.prompt_tokens + usage.completion_tokens + sum(p + c for _, p, c in self.spent)

    def _look_for_tokens(self, data: bytes) -> None:
        """A peer's answer says at its end what it took, and what was decided."""
        if self._http.client is not None or self._watched:
            self._tail = (self._tail + data)[-_MOST_TAIL:]

    def _charge(self, client: Client, now: float, outcome: str) -> None:
        """Charge the key with what the request took; with what was expected if that cannot be known."""
        expected = self.request.tokens
        taken = self._taken if not self._tail else tokens_said(self._tail)
        if taken is None:
            unserved = outcome in {"failed", "deadline", "refused_by_engine"}
            taken = sum(p + c for _, p, c in self.spent) if unserved else expected
        client.settle(now, expected, taken)

    def _latch(self, session: int, now: float) -> None:
        """Let a conversation stay with the stage that has just answered, if it was escalated there."""
        stage, asked = self.cascade.by_name.get(self.answered_by), self._stage
        if stage is not None and asked is not None and (self.path or stage.index > asked.index):
            self.node.latch.note(session, stage.name, now)

    def _finish(self, outcome: str) -> None:
        """The request is over in this router."""
        node = self.node
        if not node.let_go(self):
            return
        now = node.now()
        if self._http.client is not None:
            self._charge(self._http.client, now, outcome)
        node.window.slice(now)
        if self._watched:
            self._tell(outcome, now)
        if self._session is not None and outcome == "answered":
            self._latch(self._session, now)
        key = (self._port, self.answered_by, outcome)
        reply = self._reply_begun
        if outcome in _ANSWERED and not self.pinned:
            first_byte = reply.first_byte if reply is not None else now
            node.settlement.ends.append((key, self._arrived, first_byte, now))
            return
        node.metrics.requests[key] += 1
        if reply is not None and reply.first_byte:
            node.metrics.request_seconds[self._port].observe(now - self._arrived)
            node.metrics.first_byte_seconds[self._port].observe(reply.first_byte - self._arrived)
        if self._port == "client" and not self.pinned:
            if outcome == "interrupted":
                node.window.slice(now).interrupted += 1
            elif outcome in {"failed", "deadline"}:
                node.window.slice(now).failures += 1

    def _said(self, usage: Usage | None) -> bytes:
        """The `cascadia` object of our engine's stream that went on as it came."""
        assert self._stage is not None
        if self._document is not None:
            return self._document(usage)
        return self._stage.decision(self.path).document(None, usage, self.spent)

    def _begin_span(self, trace: Trace) -> None:
        """A call begins."""
        stage, replica = self._stage, self._replica
        assert stage is not None
        assert replica is not None
        told: dict[str, Value] = {
            "server.address": replica.upstream.host,
            "server.port": replica.upstream.port,
            "cascadia.stage": stage.name,
            "cascadia.replica": replica.name,
        }
        if replica.is_own:
            doing, model = operation(self.request), stage.served_model
            told |= {"gen_ai.operation.name": doing, "gen_ai.request.model": model}
            trace.begin(f"{doing} {model}", CLIENT, told)
        else:
            trace.begin(f"POST {self.request.path.decode('ascii', 'replace')}", CLIENT, told)

    def _tell(self, outcome: str, now: float) -> None:
        """Tell the access log and the trace."""
        reply = self._reply_begun
        decision = self._decision or decision_at_end(self._tail)
        if self._trace is not None:
            self._trace.finish(
                self.request,
                request_id=self.request_id,
                port=self._port,
                outcome=outcome,
                status=status_of(outcome, self._status),
                decision=decision,
            )
        self.node.access_log.finished(
            self.cascade,
            self._http,
            port=self._port,
            request_id=self.request_id,
            model=self.request.model,
            stream=self.request.stream,
            outcome=outcome,
            status=self._status,
            ended=now,
            first_byte=reply.first_byte if reply is not None else now if outcome in _ANSWERED else 0.0,
            decision=decision,
            rejected=self.path,
        )
