"""The admin port: probes, metrics, report, policy in force, drain. For kubelet and the operator, not for clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from urllib.parse import parse_qs

import msgspec

from cascadia_router.engine_probe import EngineProbe
from cascadia_router.http1_request import Answering, Request
from cascadia_router.metrics import client_exposition, exposition
from cascadia_router.node import Node
from cascadia_router.openai_errors import error_body

__all__ = ["AdminPort"]

log = logging.getLogger("cascadia.router.admin")

_TEXT = b"text/plain; charset=utf-8"
_PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"


class AdminPort:
    """What the admin port answers. The engine is asked only by the paths under `/engine/`."""

    closing = False

    def __init__(self, node: Node, probe: EngineProbe | None) -> None:
        self.node = node
        self._probe = probe
        self._tasks: set[asyncio.Task[None]] = set()

    def expects(self, target: bytes, authorization: bytes) -> bool:  # noqa: ARG002
        """See `Application`."""
        return True

    def turned_away(self, status: int, code: str, given_id: bytes) -> bytes:  # noqa: ARG002
        """See `Application`: the access log is of what clients and routers ask."""
        return b""

    def handle(self, connection: Answering, request: Request) -> None:
        """See `Application`."""
        path = request.path
        if request.method != b"GET" and (path, request.method) != (b"/drain", b"POST"):
            connection.respond(405, error_body(405, "Use GET.", code="method_not_allowed"), head=b"allow: GET\r\n")
        elif path == b"/healthz":
            connection.respond(200, b"ok\n", content_type=_TEXT)
        elif path == b"/readyz":
            missing = self.missing()
            connection.respond(503 if missing else 200, (missing or "ok").encode() + b"\n", content_type=_TEXT)
        elif path == b"/metrics":
            connection.respond(200, self._metrics(), content_type=_PROMETHEUS)
        elif path == b"/cascade/report":
            self._report(connection, request)
        elif path == b"/cascade/policy":
            connection.respond(200, self._policy())
        elif path == b"/cascade/endpoints":
            connection.respond(200, self._endpoints())
        elif path == b"/drain":
            self._later(self._drain(connection, request))
        elif path in {b"/engine/started", b"/engine/live", b"/engine/metrics"}:
            self._later(self._engine(connection, path))
        else:
            connection.respond(404, error_body(404, "There is nothing here.", code="not_found"))

    def close(self) -> None:
        """Stop what is under way."""
        for task in self._tasks:
            task.cancel()

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def missing(self) -> str:
        """Why the router is not ready; empty if it is."""
        node = self.node
        if node.config.role == "Follower":
            return ""
        if node.draining:
            return "draining"
        cascade = node.policies.current
        if cascade is None:
            return "no policy yet"
        if node.own is not None:
            return "" if node.own.ready else "the engine is not ready"
        if not any(stage.live.pairs for stage in cascade.stages):
            return "no stage has a replica"
        return ""

    def _metrics(self) -> bytes:
        node = self.node
        node.settlement.settle()
        cascade = node.policies.current
        now = node.now()
        text = exposition(
            node.metrics,
            stage=node.config.stage or "",
            in_flight=len(node.exchanges),
            waiting=len(node.room.waiting) if node.room is not None else 0,
            policy_revision=cascade.revision if cascade else 0,
            policy_rejected=node.policies.rejected,
            ladder_position=node.policies.entry.ladder_position() if node.policies.entry else None,
            access_log_dropped=node.access_log.writer.dropped,
            ready=not self.missing(),
            replicas=[
                (stage, replica.name, replica.outstanding, replica.ready and replica.breaker.allows(now))
                for stage, replica in node.replicas.all()
            ],
        )
        if node.clients is not None:
            text += client_exposition(
                (client.id, client.admitted, client.tokens, client.denied) for client in node.clients.all()
            )
        return text

    def _report(self, connection: Answering, request: Request) -> None:
        asked = _number(request.query, "windowSeconds", 60.0)
        if asked is None:
            message = "windowSeconds must be a number of seconds > 0."
            connection.respond(400, error_body(400, message, code="invalid_window", param="windowSeconds"))
            return
        node = self.node
        cascade = node.policies.current
        report = node.window.report(
            node.now(),
            asked,
            window_end=node.clock.now(),
            plan_id=cascade.policy.plan_id if cascade else "",
            policy_revision=cascade.revision if cascade else 0,
            replica=node.config.replica or "",
            stage=node.config.stage if node.own is not None else None,
            in_flight=len(node.exchanges),
            ladder_steps=node.policies.steps,
        )
        connection.respond(200, msgspec.json.encode(report))

    def _policy(self) -> bytes:
        cascade = self.node.policies.current
        if cascade is None:
            return msgspec.json.encode({"policyRevision": 0, "planId": None, "ladderPosition": None, "stages": []})
        return msgspec.json.encode(
            {
                "cascade": cascade.policy.cascade,
                "policyRevision": cascade.revision,
                "planId": cascade.policy.plan_id,
                "ladderPosition": cascade.ladder_position(),
                "stages": [
                    {"name": stage.name, "threshold": stage.threshold, "replicas": len(stage.targets.pairs)}
                    for stage in cascade.stages
                ],
            }
        )

    def _endpoints(self) -> bytes:
        """Where the replicas are, as this router sees them now."""
        cascade = self.node.policies.current
        return msgspec.json.encode(
            [
                {
                    "stage": stage.name,
                    "replica": replica.name,
                    "address": replica.upstream.address,
                    "weight": weight,
                    "ready": replica.ready,
                    "outstanding": replica.outstanding,
                }
                for stage in (cascade.stages if cascade is not None else ())
                for replica, weight in stage.live.pairs
            ]
        )

    async def _drain(self, connection: Answering, request: Request) -> None:
        """Become unready, and answer when no request is in flight any more.

        `?quietSeconds=5` waits until none has been in flight for that long, service s: requests still
        arrive for a while after a router has become unready.
        """
        node = self.node
        quiet = _number(request.query, "quietSeconds", 0.0) or 0.0
        node.draining = True
        log.info("draining")
        cascade = node.policies.current
        longest = (cascade.policy.request_timeout_seconds if cascade else 0.0) + quiet
        if await node.wait_idle(longest, quiet=quiet):
            connection.respond(200, b"drained\n", content_type=_TEXT)
        else:
            connection.respond(503, b"%d requests are still in flight\n" % len(node.exchanges), content_type=_TEXT)

    async def _engine(self, connection: Answering, path: bytes) -> None:
        probe = self._probe
        if probe is None:
            connection.respond(404, b"this router has no engine\n", content_type=_TEXT)
        elif path == b"/engine/metrics":
            try:
                status, content_type, text = await probe.metrics()
            except OSError as error:
                status, content_type, text = 503, _TEXT, f"{error}\n".encode()
            connection.respond(status, text, content_type=content_type)
        else:
            good = await (self._is_started(probe) if path == b"/engine/started" else self._is_live(probe))
            connection.respond(200 if good else 503, b"ok\n" if good else b"no\n", content_type=_TEXT)

    async def _is_started(self, probe: EngineProbe) -> bool:
        """A follower's engine serves `/health` only."""
        return await probe.is_healthy() if self.node.config.role == "Follower" else probe.started

    async def _is_live(self, probe: EngineProbe) -> bool:
        """On a leader `/ready` counts too, but for a drain, when it says no and nothing is wrong."""
        if not await probe.is_healthy():
            return False
        if self.node.config.role == "Follower" or self.node.draining:
            return True
        try:
            return await probe.is_ready()
        except OSError:
            return False


def _number(query: bytes, name: str, default: float) -> float | None:
    """A positive number in a query; None if it is something else."""
    values = parse_qs(query.decode("latin-1")).get(name)
    if not values:
        return default
    try:
        value = float(values[-1])
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
