"""Looks at the engines of each cascade now and then, and keeps in the cluster what they teach.

A reconcile never waits for a look: it starts one where one is due, and reads what earlier ones left in the
cascade's ConfigMap. Only the counters of the last look are remembered here: without them, after a restart, the
first look teaches nothing. Routers that do not answer cost a few threads and no reconcile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.errors import CascadiaError, InfeasibleError
from cascadia_operator.apply import apply_if_changed
from cascadia_operator.cluster import Cluster
from cascadia_operator.gather import owned_by
from cascadia_operator.learning.engines import Engine, engines_to_ask
from cascadia_operator.learning.learnt import (
    Lesson,
    Observed,
    learnt_config_map,
    read_learnt,
    with_windows,
)
from cascadia_operator.manifests.naming import learnt_name
from cascadia_operator.metrics import ENGINE_WINDOWS, ENGINES_ASKED
from cascadia_operator.router_port import ask_router
from cascadia_operator.world import Key, World
from cascadia_solver.engine_window import EngineCounters, EngineWindow, read_counters, window_between
from cascadia_solver.live_correction import CorrectionKey
from cascadia_solver.predicted_replica import predicted_replica
from cascadia_solver.replica_memory import Shape
from cascadia_solver.sources import source_of

__all__ = ["Learner", "engine_counters"]

log = logging.getLogger("cascadia.operator.learning")

_ASK_SECONDS = 5.0
"""For one router's answer: it waits two seconds for its engine."""
_MOST_BYTES = 4 * 1024 * 1024
"""Of an engine's metrics; SGLang's are 0.1 to 0.5 MiB."""
_LOOK_SECONDS = 60.0
"""For one look at one cascade, once it has its turn."""
_LOOKS_AT_ONCE = 8
_THREADS = 16
_EARLY = 0.7
"""Share of the time between looks after which one is due: reconciles come when they come."""
_LONGEST_WINDOW = 10.0
"""In times between looks: in a longer window the load will have been many loads."""
_WHY_CHARACTERS = 200


def engine_counters(engine: Engine) -> EngineCounters | str:
    """Ask an engine's router for its metrics; returns why there are none. Blocks."""
    try:
        status, body = ask_router(engine.pod, "/engine/metrics", seconds=_ASK_SECONDS, most_bytes=_MOST_BYTES)
    except OSError as error:
        return f"its router does not answer: {error}"[:_WHY_CHARACTERS]
    text = body.decode(errors="replace")
    if status != 200:
        return f"its router says {status}: {text.strip()}"[:_WHY_CHARACTERS]
    counters = read_counters(text, time.monotonic())
    return counters or "its engine's metrics lack SGLang's histograms of latencies: is its image SGLang's?"


@dataclass
class _Watched:
    """One cascade's looks: when the last began, what the counters were, and what went wrong."""

    began: float = float("-inf")
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    read: dict[str, EngineCounters] = field(default_factory=dict)
    problem: str = ""


class Learner:
    """Starts looks, one for each cascade at a time and a few in all.

    Args:
        cluster: Where what is learnt is kept.
        look_seconds: Between looks at a cascade.
        ask: Asks one engine, in a thread.
        moment: Monotonic time, s: of looks, and of the counters that `ask` returns.

    Attributes:
        look_seconds: As given.
    """

    def __init__(
        self,
        cluster: Cluster,
        look_seconds: float,
        ask: Callable[[Engine], EngineCounters | str] = engine_counters,
        moment: Callable[[], float] = time.monotonic,
    ) -> None:
        self.look_seconds = look_seconds
        self._cluster = cluster
        self._ask = ask
        self._moment = moment
        self._watched: dict[Key, _Watched] = {}
        self._turn = asyncio.Semaphore(_LOOKS_AT_ONCE)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="engines")

    def look(self, world: World) -> None:
        """Start a look at a cascade's engines, unless one is under way or was not long ago; waits for nothing."""
        watched = self._watched.setdefault(world.key, _Watched())
        now = self._moment()
        busy = watched.task is not None and not watched.task.done()
        if busy or now - watched.began < _EARLY * self.look_seconds:
            return
        engines = engines_to_ask(world, self.look_seconds)
        if not engines:
            watched.read.clear()
            return
        watched.began = now
        watched.task = asyncio.create_task(self._look(world.key, world.cascade, engines, world.now, watched))

    def problem(self, key: Key) -> str:
        """Why the last look came to nothing; empty if it did not."""
        watched = self._watched.get(key)
        return watched.problem if watched is not None else ""

    async def idle(self) -> None:
        """Wait until no look is under way."""
        await asyncio.gather(*(watched.task for watched in self._watched.values() if watched.task is not None))

    def forget(self, key: Key) -> None:
        """Drop what is known of a cascade that is gone."""
        watched = self._watched.pop(key, None)
        if watched is not None and watched.task is not None:
            watched.task.cancel()

    async def close(self) -> None:
        """Give up all that is under way."""
        tasks = [watched.task for watched in self._watched.values() if watched.task is not None]
        self._watched.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _look(
        self, key: Key, cascade: CascadeDeployment, engines: Sequence[Engine], now: datetime, watched: _Watched
    ) -> None:
        """One look; raises nothing but cancellation."""
        try:
            async with self._turn, asyncio.timeout(_LOOK_SECONDS):
                await self._learn(key, cascade, engines, now, watched)
            watched.problem = ""
        except TimeoutError:
            watched.problem = f"a look at the engines took longer than {_LOOK_SECONDS:g} s"
        except CascadiaError as error:
            watched.problem = str(error)
        except Exception as error:  # a defect here must not stop the operator
            log.exception("looking at the engines of %s failed", key)
            watched.problem = f"{type(error).__name__}: {error}"
        if watched.problem:
            log.warning("nothing is learnt from the engines of %s: %s", key, watched.problem)

    async def _learn(
        self, key: Key, cascade: CascadeDeployment, engines: Sequence[Engine], now: datetime, watched: _Watched
    ) -> None:
        loop = asyncio.get_running_loop()
        answers = await asyncio.gather(*(loop.run_in_executor(self._threads, self._ask, engine) for engine in engines))
        told = {engine.name: a for engine, a in zip(engines, answers, strict=True) if not isinstance(a, str)}
        silent = {engine.name: a for engine, a in zip(engines, answers, strict=True) if isinstance(a, str)}
        ENGINES_ASKED.labels("told").inc(len(told))
        ENGINES_ASKED.labels("silent").inc(len(silent))
        windows = self._windows(engines, told, watched)
        ENGINE_WINDOWS.inc(len(windows))
        namespace, name = key
        found = await self._cluster.get("ConfigMap", namespace, learnt_name(name))
        live = found if found is not None and owned_by(found, cascade.metadata.uid or "") else None
        known = read_learnt(live)
        lessons: Mapping[CorrectionKey, Lesson] = known.lessons
        if windows:
            observed = await loop.run_in_executor(self._threads, _compared, cascade, windows)
            lessons = await loop.run_in_executor(self._threads, with_windows, lessons, observed, now)
        learnt = replace(known, lessons=lessons, told=tuple(sorted(told)), silent=dict(sorted(silent.items())))
        if learnt != known:
            await apply_if_changed(self._cluster, learnt_config_map(cascade, learnt), live)

    def _windows(
        self, engines: Sequence[Engine], told: Mapping[str, EngineCounters], watched: _Watched
    ) -> list[tuple[Engine, EngineWindow]]:
        """What each engine has done since it was last read; a window with too few requests goes on at the next look."""
        before, watched.read = watched.read, {}
        now, longest = self._moment(), _LONGEST_WINDOW * self.look_seconds
        windows: list[tuple[Engine, EngineWindow]] = []
        for engine in engines:
            earlier, later = before.get(engine.life), told.get(engine.name)
            if earlier is not None and now - earlier.at > longest:
                earlier = None
            window = window_between(earlier, later) if earlier is not None and later is not None else None
            if window is not None:
                windows.append((engine, window))
            elif earlier is not None and (later is None or later.first_tokens >= earlier.first_tokens):
                later = earlier
            if later is not None:
                watched.read[engine.life] = later
        return windows


def _compared(cascade: CascadeDeployment, windows: Sequence[tuple[Engine, EngineWindow]]) -> list[Observed]:
    """Each window with what the cost source, uncorrected, says of its engine. Blocks: measured tables are loaded.

    Raises:
        InputError: The manifest says something wrong, or asks for tables that are not there.
    """
    source = source_of(cascade.spec.planning)
    observed: list[Observed] = []
    for engine, window in windows:
        identity = engine.identity
        shape = Shape(identity.tensor_parallel, identity.pipeline_parallel)
        try:
            replica = predicted_replica(cascade.spec, source, identity.stage, identity.pool, shape)
        except InfeasibleError:  # it runs, and yet the cost model says that it does not fit: there is no prediction
            continue
        observed.append(Observed(engine.name, replica.key(engine.version), engine.basis, replica.step, window))
    return observed
