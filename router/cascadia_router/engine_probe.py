"""What the engine beside this router says of itself, and whether it is ready.

Readiness is polled in the background, so that a probe of the router never waits for the engine.
"""

from __future__ import annotations

import asyncio
import logging

from cascadia_router.http1_client import Upstream
from cascadia_router.http1_head import header_fields
from cascadia_router.json_log import fields
from cascadia_router.node import Node
from cascadia_router.response_sink import Fault

__all__ = ["EngineProbe", "fetch"]

log = logging.getLogger("cascadia.router.engine")


class _Fetch:
    """Collects one answer for an awaiting caller."""

    def __init__(self) -> None:
        self.result: asyncio.Future[tuple[int, bytes, bytes]] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._content_type = b""
        self._parts: list[bytes] = []

    def response_whole(self, message: bytes, body: bytes) -> None:
        self.response_head(200, header_fields(message), None)
        self.response_body(body)
        self.response_end()

    def response_head(self, status: int, headers: dict[bytes, bytes], length: int | None) -> None:  # noqa: ARG002
        self._status = status
        self._content_type = headers.get(b"content-type", b"text/plain")

    def response_body(self, data: bytes) -> None:
        self._parts.append(data)

    def response_pump(self) -> None:
        pass

    def response_end(self) -> None:
        if not self.result.done():
            self.result.set_result((self._status, self._content_type, b"".join(self._parts)))

    def response_fault(self, fault: Fault) -> None:
        if not self.result.done():
            self.result.set_exception(ConnectionError(f"the engine is {fault.value}"))


async def fetch(upstream: Upstream, path: str, timeout: float) -> tuple[int, bytes, bytes]:  # noqa: ASYNC109
    """GET a path.

    Args:
        upstream: The server.
        path: Target.
        timeout: Longest time to wait, wall s.

    Returns:
        Status, content type, body.

    Raises:
        OSError: There was no answer in time (`ConnectionError`, `TimeoutError`).
    """
    sink = _Fetch()
    request = b"GET %s HTTP/1.1\r\n%s\r\n" % (path.encode(), upstream.host_line)
    call = upstream.send(request, sink, fresh=True)
    try:
        async with asyncio.timeout(timeout):
            return await sink.result
    except TimeoutError:
        raise TimeoutError(f"the engine did not answer {path} within {timeout:g} s") from None
    finally:
        if not sink.result.done() or sink.result.cancelled():
            call.abort()


class EngineProbe:
    """Polls the engine's readiness and relays its health.

    SGLang's `/ready` is cheap; its `/health` runs a token and may take 20 s. llama.cpp has `/health`
    only, which is cheap there.
    """

    POLL_SECONDS = 2.0
    """Between polls of a ready engine, service s."""
    START_SECONDS = 0.25
    """Between polls of one that is not, service s."""
    SILENCE_SECONDS = 10.0
    """How long an engine that does not answer polls still counts as ready, service s, for a busy one may be slow."""
    TIMEOUT_SECONDS = 2.0
    """Longest wait for a poll's answer, wall s."""
    HEALTH_SECONDS = 25.0
    """Longest wait for `/health`, service s, but no less than `TIMEOUT_SECONDS` of wall time."""

    def __init__(self, node: Node, engine: Upstream) -> None:
        self._node = node
        self._engine = engine
        self._last_ready = float("-inf")
        self.started = False

    async def run(self) -> None:
        """Poll until cancelled."""
        own, wall = self._node.own, self._node.clock.wall
        while True:
            ready = await self._poll()
            self.started = self.started or ready
            if own is not None and own.ready != ready:
                own.ready = ready
                log.info("engine ready" if ready else "engine not ready", extra=fields(engine=self._engine.address))
            await asyncio.sleep(max(wall(self.POLL_SECONDS if ready else self.START_SECONDS), 0.02))

    async def _poll(self) -> bool:
        try:
            ready = await self.is_ready()
        except TimeoutError:
            return self._node.now() - self._last_ready < self.SILENCE_SECONDS
        except OSError:
            return False
        if ready:
            self._last_ready = self._node.now()
        return ready

    async def is_ready(self) -> bool:
        """Ask the engine whether it takes requests.

        Raises:
            OSError: It does not answer.
        """
        status, _, _ = await fetch(self._engine, "/ready", self.TIMEOUT_SECONDS)
        if status == 404:
            status, _, _ = await fetch(self._engine, "/health", self.TIMEOUT_SECONDS)
        return status == 200

    async def is_healthy(self) -> bool:
        """Ask the engine whether it works; may take long."""
        timeout = max(self._node.clock.wall(self.HEALTH_SECONDS), self.TIMEOUT_SECONDS)
        try:
            status, _, _ = await fetch(self._engine, "/health", timeout)
        except OSError:
            return False
        return status == 200

    async def metrics(self) -> tuple[int, bytes, bytes]:
        """The engine's own metrics: status, content type, text.

        Raises:
            OSError: It does not answer.
        """
        return await fetch(self._engine, "/metrics", self.TIMEOUT_SECONDS)
