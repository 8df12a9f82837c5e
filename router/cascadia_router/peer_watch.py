"""Finding out which peers accept connections and never answer.

How long an answer takes says nothing: it may take minutes, and its router is silent all the while. So a
router from which nothing has come for a while, though it holds requests of ours, is asked whether it lives
(`GET /healthz` on its stage port, which its event loop answers at once, whatever its engine does). One that
does not say so twice is *silent*: the requests that it holds are taken to be lost, so that they are repeated
elsewhere, and nothing is sent to it until it answers again. A node that is gone without closing its
connections, a stopped process and a partition all look like this.

Times here are wall seconds even where the service clock is scaled: a process is as quick to say that it
lives as the machine is, however fast the service's time passes.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

from cascadia_router.balancing import Replica
from cascadia_router.engine_probe import fetch
from cascadia_router.json_log import fields
from cascadia_router.node import Node

__all__ = ["PeerWatch"]

log = logging.getLogger("cascadia.router.peers")


class PeerWatch:
    """Watches the replicas of other routers."""

    LOOK_SECONDS = 1.0
    """Between two looks, wall s."""
    SILENCE_SECONDS = 3.0
    """Silence after which a peer that holds requests is asked, wall s."""
    PROBE_SECONDS = 2.0
    """Longest wait for its word, wall s."""
    PROBES = 2
    """Unanswered probes in a row that make it silent."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._heard: dict[Replica, tuple[int, float]] = {}

    async def run(self) -> None:
        """Watch until cancelled."""
        asking: dict[Replica, asyncio.Task[None]] = {}
        try:
            while True:
                await asyncio.sleep(self.LOOK_SECONDS)
                asking = {replica: task for replica, task in asking.items() if not task.done()}
                for replica in self.to_ask(monotonic()):
                    if replica not in asking:
                        asking[replica] = asyncio.get_running_loop().create_task(self._ask(replica))
        finally:
            for task in asking.values():
                task.cancel()

    def to_ask(self, now: float) -> list[Replica]:
        """The peers that are silent, or have been for a while though they hold requests.

        Args:
            now: Machine's monotonic clock, s.
        """
        heard, ask = {}, []
        for _, replica in self._node.replicas.all():
            if replica.is_own:
                continue
            count = replica.upstream.heard
            before, since = self._heard.get(replica, (-1, now))
            if count != before or not replica.outstanding:
                since = now
            heard[replica] = count, since
            if replica.breaker.silent or now - since >= self.SILENCE_SECONDS:
                ask.append(replica)
        self._heard = heard
        return ask

    async def _ask(self, replica: Replica) -> None:
        for _ in range(self.PROBES):
            asked = monotonic()
            try:
                await fetch(replica.upstream, "/healthz", self.PROBE_SECONDS)  # whatever it says, it lives
            except OSError:
                if monotonic() - asked > 2 * self.PROBE_SECONDS:
                    return  # it was this process that had no time
                continue
            if replica.breaker.silent:
                replica.breaker.silent = False
                log.info("peer answers again", extra=fields(replica=replica.name, address=replica.upstream.address))
            return
        if not replica.breaker.silent:
            replica.breaker.silent = True
            log.warning("peer is silent", extra=fields(replica=replica.name, address=replica.upstream.address))
        replica.upstream.lose()
