"""The parent's end of the planning process (see `planning_worker`)."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cascadia_api.errors import CascadiaError, InfeasibleError, InputError, PlanningTimeoutError
from cascadia_local.planning_messages import LENGTH, Infeasible, Invalid, Job, OutOfTime, Planned, Progress
from cascadia_local.processes import Command, end_piped, start_piped

__all__ = ["PlanningProcess"]

NICENESS = 5
"""Engines and routers go first: a plan that comes a little later harms nobody."""
GRACE = 2.0
"""The process is ended once a job takes this many times its deadline."""


class PlanningProcess:
    """Plans in a process of its own, one job at a time; the process is kept for the next job.

    Args:
        directory: The run's folder, for its log.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def run(self, job: Job, *, progress: Callable[[Progress], None] | None = None) -> Planned:
        """Do a job.

        Raises:
            InputError: The inputs are wrong.
            InfeasibleError: No plan can satisfy the manifest.
            PlanningTimeoutError: No plan by the job's deadline, or no answer within twice that time.
            CascadiaError: The process ended.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(GRACE * job.deadline_seconds):
                    return await self._exchange(job, progress)
            except TimeoutError:
                await self.stop()
                raise PlanningTimeoutError(f"planning took more than {GRACE * job.deadline_seconds:.0f} s") from None
            except (ConnectionError, asyncio.IncompleteReadError):
                await self.stop()
                log = self._directory / "planner.log"
                raise CascadiaError(f"the planning process ended early; its log is {log}") from None

    async def _exchange(self, job: Job, progress: Callable[[Progress], None] | None) -> Planned:
        if self._process is None:
            command = Command("cascadia_local.planning_worker", nice=NICENESS)
            self._process = await start_piped("planner", command, self._directory, line_limit=2**16)
        assert self._process.stdin is not None
        document = pickle.dumps(job)
        self._process.stdin.write(LENGTH.pack(len(document)) + document)
        await self._process.stdin.drain()
        while True:
            answer = await self._receive(self._process)
            if isinstance(answer, Progress):
                if progress is not None:
                    progress(answer)
            elif isinstance(answer, Invalid):
                raise InputError(answer.problems, source=answer.source)
            elif isinstance(answer, Infeasible):
                raise InfeasibleError(
                    answer.reason, answer.message, shortfalls=answer.shortfalls, nearest=answer.nearest
                )
            elif isinstance(answer, OutOfTime):
                raise PlanningTimeoutError(answer.message)
            else:
                assert isinstance(answer, Planned)
                return answer

    @staticmethod
    async def _receive(process: asyncio.subprocess.Process) -> Any:
        assert process.stdout is not None
        (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        return pickle.loads(await process.stdout.readexactly(length))  # noqa: S301 - from our own child

    async def stop(self) -> None:
        """End the process; the next job starts another."""
        process, self._process = self._process, None
        if process is not None:
            await end_piped(process)
