"""Child processes of a run: started, watched, restarted after a crash, stopped in order.

They end with this process however it ends (see `child`), write to a log file each, and their
failures are told with name, exit code and the end of the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from cascadia_api.errors import CascadiaError

__all__ = ["ChildProcess", "Command", "ProcessFailedError", "end_piped", "start_piped"]

RESTART_BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Wall seconds before the first, second … restart of a series of crashes; the last one holds for more."""
CRASH_SERIES_S = 60.0
"""Crashes further apart than this, wall seconds, are not of one series."""
MOST_CRASHES = 6
"""Crashes of one series after which a process is given up."""
BAD_CONFIGURATION = 2
"""Exit code of our processes for a configuration that they refuse: one that never ran will not run."""
POLL_S = 0.05
LOG_LINES = 12


class ProcessFailedError(CascadiaError):
    """A process ended early or did not get ready; the message names it and ends with its last log lines."""


@dataclass(frozen=True, slots=True)
class Command:
    """A Python module to run and its arguments.

    Attributes:
        module: As for ``python -m``.
        arguments: Its command line.
        nice: Added to the niceness of the process, ≥ 0.
    """

    module: str
    arguments: tuple[str, ...] = ()
    nice: int = 0

    def argv(self) -> list[str]:
        """The whole command line."""
        start = ["nice", "-n", str(self.nice)] if self.nice else []
        return [
            *start,
            sys.executable,
            "-m",
            "cascadia_local.child",
            str(os.getpid()),
            self.module,
            *self.arguments,
        ]


class ChildProcess:
    """One process that is kept running from `start` to `stop`.

    Args:
        name: For messages and the log's file name.
        command: What it runs.
        log_directory: Folder of the log file ``<name>.log``.
        on_exit: Called after each end that was not asked for, with the exit code (negative: the signal).
    """

    def __init__(
        self,
        name: str,
        command: Command,
        log_directory: Path,
        *,
        on_exit: Callable[[ChildProcess, int], None] | None = None,
    ) -> None:
        self.name = name
        self.command = command
        self.log = log_directory / f"{name}.log"
        self.restarts = 0
        self.given_up = False
        self._on_exit = on_exit
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._crashes: deque[float] = deque(maxlen=MOST_CRASHES)
        self._last_code: int | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None while it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the process and keep it running."""
        await self._spawn()
        self._task = asyncio.create_task(self._keep_running(), name=f"keep {self.name} running")

    async def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command.argv(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C reaches this process only, which stops the others in order.
                start_new_session=True,
            )

    async def _keep_running(self) -> None:
        while True:
            assert self._process is not None
            code = await self._process.wait()
            if self._stopping:
                return
            self._last_code = code
            now = time.monotonic()
            while self._crashes and now - self._crashes[0] > CRASH_SERIES_S:
                self._crashes.popleft()
            self._crashes.append(now)
            refused = code == BAD_CONFIGURATION and not self.restarts
            self.given_up = refused or len(self._crashes) >= MOST_CRASHES
            if self._on_exit is not None:
                self._on_exit(self, code)
            if self.given_up:
                return
            await asyncio.sleep(RESTART_BACKOFF_S[min(len(self._crashes), len(RESTART_BACKOFF_S)) - 1])
            self.restarts += 1
            await self._spawn()

    async def wait_until(self, ready: Callable[[], Awaitable[bool]], *, deadline_s: float) -> None:
        """Wait until `ready()` holds.

        Args:
            ready: Probe; asked again and again.
            deadline_s: Wall seconds.

        Raises:
            ProcessFailedError: The process was given up, or the deadline has passed.
        """
        end = time.monotonic() + deadline_s
        while not await ready():
            if self.given_up:
                raise ProcessFailedError(self.failure())
            if time.monotonic() > end:
                raise ProcessFailedError(f"{self.name} was not ready within {deadline_s:.0f} s{self._log_end()}")
            await asyncio.sleep(POLL_S)

    def failure(self) -> str:
        """How it ended, with the end of its log."""
        return f"{self.name} {describe_exit(self._last_code)}{self._log_end()}"

    def _log_end(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        except OSError:
            lines = []
        return "; the end of its log:\n  " + "\n  ".join(lines) if lines else f"; its log {self.log} is empty"

    async def stop(self, *, grace_s: float = 5.0, with_signal: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end by a signal, kill it after `grace_s` wall seconds; returns once it is gone."""
        self._stopping = True
        process, task = self._process, self._task
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(with_signal)
            try:
                async with asyncio.timeout(grace_s):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            # A restart may have been under way between the two.
            if self._process is not None and self._process.returncode is None:
                self._process.kill()
                await self._process.wait()

    def kill(self) -> None:
        """End it at once; `stop` is still to be called."""
        self._stopping = True
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def describe_exit(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "has not ended"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


async def start_piped(
    name: str, command: Command, log_directory: Path, *, line_limit: int
) -> asyncio.subprocess.Process:
    """Start a process that is talked to over its standard input and output; it is not restarted.

    Args:
        name: Names the log file that its standard error goes to.
        command: What it runs.
        log_directory: Folder of the log file.
        line_limit: Longest line that it may write, bytes.
    """
    with (log_directory / f"{name}.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *command.argv(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=line_limit,
            start_new_session=True,
        )


async def end_piped(process: asyncio.subprocess.Process) -> None:
    """Kill such a process, unless it has ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
