"""The parent's end of the traffic process (see `traffic_client`)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from cascadia_api.clock import ScaledClock
from cascadia_local.measurements import Measurements
from cascadia_local.processes import Command, ProcessFailedError, end_piped, start_piped
from cascadia_local.traffic import Phase, Progress, TrafficCommand, TrafficConfig, TrafficUpdate

__all__ = ["TrafficProcess"]

LINE_LIMIT = 64 * 1024 * 1024


class TrafficProcess:
    """Sends traffic and gathers what comes of it.

    Args:
        config: What to send where.
        directory: The run's folder, for its configuration and log.

    Attributes:
        measurements: All answers so far.
        progress: How the process fares.
        ended: Set once it has been stopped and every answer is in.
    """

    def __init__(self, config: TrafficConfig, directory: Path) -> None:
        self.measurements = Measurements()
        self.progress = Progress()
        self.ended = asyncio.Event()
        self._clock = ScaledClock(config.clock_scale, config.clock_epoch)
        self._config_file = directory / "traffic.json"
        self._config_file.write_bytes(msgspec.json.encode(config))
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process; it sends nothing yet."""
        command = Command("cascadia_local.traffic_client", (str(self._config_file),))
        self._process = await start_piped("traffic", command, self._directory, line_limit=LINE_LIMIT)
        self._reader = asyncio.create_task(self._read(), name="traffic updates")

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        decoder = msgspec.json.Decoder(TrafficUpdate)
        try:
            while line := await self._process.stdout.readline():
                update = decoder.decode(line)
                self.measurements.add(update.answers, now=self._clock.now())
                self.progress = update.progress
                if update.ended:
                    return
            raise ProcessFailedError(f"the traffic process ended early; its log is {self._directory / 'traffic.log'}")
        finally:
            self.ended.set()

    async def phase(self, phase: Phase) -> None:
        """Send synthetic traffic of this kind from now on."""
        await self._tell(TrafficCommand(do="phase", phase=phase))

    async def replay(self) -> None:
        """Send the requests file."""
        await self._tell(TrafficCommand(do="replay"))

    async def stop(self) -> None:
        """Send nothing more; wait until every answer is in.

        Raises:
            ProcessFailedError: The process ended before.
        """
        await self._tell(TrafficCommand(do="stop"))
        assert self._reader is not None
        await self._reader

    async def _tell(self, command: TrafficCommand) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(command) + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            assert self._reader is not None
            await self._reader  # tells why

    async def kill(self) -> None:
        """End it now, whatever is under way."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._process is not None:
            await end_piped(self._process)
