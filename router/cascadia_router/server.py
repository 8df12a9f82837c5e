"""One router process put together: listeners, policy sources, engine probe, sweeps, and their end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

from cascadia_api.errors import InputError, Problem
from cascadia_api.policy import LARGEST_BODY_BYTES, RouterConfig
from cascadia_router import express
from cascadia_router.admin import AdminPort
from cascadia_router.bootstrap import check_config
from cascadia_router.certificate import Certificate
from cascadia_router.client_port import ClientPort
from cascadia_router.config_map_watch import ConfigMapWatch
from cascadia_router.endpoint_names import EndpointNames
from cascadia_router.endpoint_slices import EndpointWatch
from cascadia_router.engine_probe import EngineProbe
from cascadia_router.http1_client import Upstream
from cascadia_router.http1_request import Application, Limits, Room
from cascadia_router.json_log import fields
from cascadia_router.list_watch import ApiServer
from cascadia_router.listener import Listener
from cascadia_router.node import Node
from cascadia_router.peer_port import PeerPort
from cascadia_router.peer_secret_file import PeerSecretFile
from cascadia_router.peer_watch import PeerWatch
from cascadia_router.policy_file import PolicyFile
from cascadia_router.served import STOPPED, Served

__all__ = ["Router"]

log = logging.getLogger("cascadia.router")

SWEEP_SECONDS = 0.5
"""Between looks at idle and slow connections, and at those whose clients may leave unheard, wall s."""

COMPILED = not (express.__file__ or "").endswith(".py")
"""Whether requests are answered by compiled code: see docs/router-performance.md."""
LAST_LINES_SECONDS = 1.0
"""Longest wait for who reads the access log, and for the collector of traces, when a router ends, wall s."""


class Router:
    """A router that listens.

    Attributes:
        node: Its state.
        addresses: Where it listens, by port name (`client`, `peers`, `admin`), real ports included.
    """

    def __init__(self, config: RouterConfig, limits: Limits | None = None) -> None:
        """Prepare a router.

        Raises:
            InputError: The configuration contradicts itself or names a file that cannot be read.
        """
        check_config(config)
        path = config.peer_secret_file
        self._peer_secrets = PeerSecretFile(path) if path is not None else None
        self.node = Node(config, self._peer_secrets.secrets if self._peer_secrets is not None else None)
        self.addresses: dict[str, str] = {}
        self._limits = limits or Limits(body_bytes=config.max_body_bytes)
        self._room = Room()
        self._certificate = Certificate(config.tls) if config.tls is not None else None
        engine = Upstream(config.engine) if config.engine is not None else None
        self._probe = EngineProbe(self.node, engine) if engine is not None else None
        self._probe_upstream = engine
        self._admin = AdminPort(self.node, self._probe)
        self._serving: list[Listener] = []
        self._listeners: list[Listener] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Read the policy, listen, and watch.

        Raises:
            InputError: An address cannot be listened on.
        """
        config, node = self.node.config, self.node
        sources: list[Coroutine[None, None, None]] = []
        if config.policy_file is not None:
            file = PolicyFile(config.policy_file, node.policies)
            file.read()
            if config.policy_config_map is None:
                sources.append(file.run())
        if config.policy_config_map is not None:
            server = ApiServer.from_environment()
            sources.append(ConfigMapWatch(config.policy_config_map, node.policies, server).run())
            namespace = config.policy_config_map.partition("/")[0]
            sources.append(EndpointWatch(namespace, node.policies, server).run())
        if config.role == "Leader":
            sources.append(EndpointNames(node.policies).run())
        if self._probe is not None:
            sources.append(self._probe.run())
        if config.role == "Leader":
            sources.append(PeerWatch(node).run())
        sources += self._secret_sources()
        self._tasks = [self._task(work) for work in (*sources, self._tick(), self._sweep())]
        if config.role == "Leader":
            if config.client is not None:
                self._serving.append(await self._listen("client", config.client, ClientPort(node)))
            if config.peers is not None:
                self._serving.append(await self._listen("peers", config.peers, PeerPort(node)))
        await self._listen("admin", config.admin, self._admin)
        log.info(
            "listening", extra=fields(stage=config.stage, replica=config.replica, compiled=COMPILED, **self.addresses)
        )

    def _secret_sources(self) -> list[Coroutine[None, None, None]]:
        """What watches the files that hold secrets."""
        keys = self.node.clients.keys if self.node.clients is not None else None
        if keys is not None:
            keys.read()
        watched = (self._peer_secrets, self._certificate, keys)
        return [each.run() for each in watched if each is not None]

    async def _listen(self, name: str, address: str, application: Application) -> Listener:
        listener = Listener(application, self._peer_limits if name == "peers" else self._client_limits, self._room)
        try:
            tls = self._certificate.context if self._certificate is not None and name == "client" else None
            self.addresses[name] = await listener.start(address, tls)
        except OSError as error:
            raise InputError(Problem(name, f"cannot listen on {address}: {error.strerror or error}")) from None
        self._listeners.append(listener)
        return listener

    def _client_limits(self) -> Limits:
        """What a connection that comes now may ask for."""
        cascade = self.node.policies.current
        limits = cascade.policy.limits if cascade is not None else None
        if limits is None:
            return self._limits
        self._room.most = limits.buffered_bytes
        return self._limits._replace(
            body_bytes=limits.body_bytes,
            header_bytes=limits.header_bytes,
            headers=limits.headers,
            receive_seconds=limits.receive_seconds,
            connections=limits.connections,
        )

    def _peer_limits(self) -> Limits:
        """What routers may ask of each other: the one that the client called has looked at the body."""
        return self._client_limits()._replace(body_bytes=LARGEST_BODY_BYTES)

    @staticmethod
    def _task(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_complain)
        return task

    async def _tick(self) -> None:
        """Requests' deadlines, to half a service second or a hundredth of a wall second."""
        pause = max(0.01, min(0.1, self.node.clock.wall(0.5)))
        while True:
            await asyncio.sleep(pause)
            self.node.tick()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            for listener in self._listeners:
                listener.sweep()
            for _, replica in self.node.replicas.all():
                replica.upstream.sweep()
            self.node.workbench.sweep()

    async def stop(self, at_once: asyncio.Event) -> None:
        """Take no more connections, finish what is in flight within the request timeout, say what was served.

        Args:
            at_once: Once set, nothing is waited for any more.
        """
        node = self.node
        node.draining = True
        for listener in self._serving:
            listener.stop_accepting()
        log.info("stopping", extra=fields(in_flight=len(node.exchanges)))
        cascade = node.policies.current
        longest = cascade.policy.request_timeout_seconds if cascade else 0.0
        waits = [asyncio.ensure_future(work) for work in (node.wait_idle(longest), at_once.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        if node.exchanges:
            log.warning("stopping with requests in flight", extra=fields(requests=len(node.exchanges)))
        node.settlement.settle()
        log.info(STOPPED, extra=Served.counted(node.metrics, len(node.exchanges)).fields())

    async def close(self) -> None:
        """Close everything at once."""
        for task in self._tasks:
            task.remove_done_callback(_complain)
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._admin.close()
        for listener in self._listeners:
            listener.close()
        for _, replica in self.node.replicas.all():
            replica.upstream.close()
        self.node.workbench.close()
        await self.node.tracer.finish(self.node.tracing, LAST_LINES_SECONDS)
        await asyncio.to_thread(self.node.access_log.writer.close, LAST_LINES_SECONDS)
        if self._probe_upstream is not None:
            self._probe_upstream.close()
        await asyncio.sleep(0)  # the transports close in the loop's next turn


def _complain(task: asyncio.Task[None]) -> None:
    """A background task has ended, which none should: say so loudly."""
    if not task.cancelled() and task.exception() is not None:
        log.error("a background task failed", exc_info=task.exception())
