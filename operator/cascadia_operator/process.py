"""The parts of a running operator, put together: one event loop, one queue, one planning process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal

from cascadia_operator.acknowledgement import HttpAcknowledgement, TakenForGranted
from cascadia_operator.capacity import CapacitySource
from cascadia_operator.cluster import KubernetesCluster
from cascadia_operator.learning.learner import Learner
from cascadia_operator.planning import Planner, PlanningPool
from cascadia_operator.reconcile import Reconciler
from cascadia_operator.settings import OperatorSettings
from cascadia_operator.work_queue import WorkQueue
from cascadia_operator.world import Key

__all__ = ["OperatorProcess"]

log = logging.getLogger("cascadia.operator")

_STUCK_SECONDS = 300.0


class OperatorProcess:
    """Everything between the watches and the cluster. Made and started inside the event loop."""

    def __init__(self, settings: OperatorSettings) -> None:
        self._workers = settings.workers
        self._cluster = KubernetesCluster()
        self._pool = PlanningPool()
        self._planner = Planner(self._pool, settings.planning_deadline_seconds, self.enqueue)
        asks = settings.router_acknowledgement == "http"
        self._learner = (
            Learner(self._cluster, settings.engine_look_seconds) if asks and settings.engine_look_seconds else None
        )
        reconciler = Reconciler(
            self._cluster,
            self._planner,
            HttpAcknowledgement() if asks else TakenForGranted(),
            settings.images,
            CapacitySource(self._cluster),
            learner=self._learner,
        )
        self._queue = WorkQueue[Key](reconciler.reconcile, resync_seconds=settings.resync_seconds)
        self._work: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start working on what is enqueued."""
        self._work = asyncio.create_task(self._queue.run(self._workers), name="work queue")
        self._work.add_done_callback(_end_with_the_queue)

    def enqueue(self, key: Key) -> None:
        """Have a cascade looked at."""
        self._queue.add(key)

    async def stop(self) -> None:
        """Give up what is under way: the next operator finds it half done, and goes on from there."""
        if self._work is not None:
            self._work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._work
        await self._planner.close()
        if self._learner is not None:
            await self._learner.close()
        self._pool.close()
        self._cluster.close()

    def trouble(self) -> str:
        """Why the process should be restarted; empty while it is well."""
        if self._work is None or self._work.done():
            return "the work queue is not running"
        longest = self._queue.longest_running_seconds()
        return f"a reconcile has been running for {longest:.0f} s" if longest > _STUCK_SECONDS else ""


def _end_with_the_queue(work: asyncio.Task[None]) -> None:
    """A process that watches but does not work is worse than one that is started again."""
    if not work.cancelled() and (error := work.exception()) is not None:
        log.critical("the work queue ended: the operator stops", exc_info=error)
        signal.raise_signal(signal.SIGTERM)
