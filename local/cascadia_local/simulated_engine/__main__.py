"""`python -m cascadia_local.simulated_engine --config FILE.json`: one simulated engine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import signal
import sys
from pathlib import Path

import uvloop

from cascadia_api.errors import InputError
from cascadia_local.engine_log import log
from cascadia_local.simulated_engine.config import SimulatedEngineConfig, decode_config
from cascadia_local.simulated_engine.difficulty import DifficultyModel
from cascadia_local.simulated_engine.engine import SimulatedEngine
from cascadia_local.simulated_engine.http_server import Connection, OpenConnections
from cascadia_local.simulated_engine.outcomes import DrawnOutcomes, Outcomes, RecordedOutcomes
from cascadia_local.simulated_engine.recorded import decode_rows

LINGER_SECONDS = 2.0
"""Longest wait at the end for clients to read what was sent, wall s."""


def load_config(path: str) -> tuple[SimulatedEngineConfig, Outcomes]:
    """Read the configuration and the outcomes that it names.

    Raises:
        InputError: A file is missing or wrong; the error names it.
    """
    source = path
    try:
        config = decode_config(Path(path).read_bytes())
        difficulty = DifficultyModel(config.model, seed=config.seed, correlation=config.error_correlation)
        outcomes: Outcomes = DrawnOutcomes(difficulty)
        if config.outcomes_file is not None:
            source = config.outcomes_file
            with Path(source).open("rb") as lines:
                outcomes = RecordedOutcomes(decode_rows(lines), config.model.name, config.scorer_id, outcomes)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", source=source) from None
    except InputError as error:
        raise error.within(source) from None
    return config, outcomes


async def serve(config: SimulatedEngineConfig, outcomes: Outcomes) -> None:
    """Serve until told to stop: by SIGTERM as SGLang does it, or at once by SIGINT.

    Raises:
        InputError: The address cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    engine = SimulatedEngine(config, outcomes, loop)
    connections = OpenConnections()
    stopped = asyncio.Event()
    host, port = config.address
    try:
        server = await loop.create_server(lambda: Connection(engine, connections), host, port, backlog=1024)
    except OSError as error:
        raise InputError(f"listen: cannot listen on {config.listen}: {error.strerror}") from None
    bound = server.sockets[0].getsockname()
    log("listening", stage=config.stage, address=f"{bound[0]}:{bound[1]}", simulated=True)

    def loaded() -> None:
        engine.loaded = True
        log("ready", stage=config.stage)

    def drain() -> None:
        if not engine.draining:
            engine.draining = True
            log("draining", stage=config.stage, unfinished=engine.generation.unfinished)
            loop.call_later(engine.clock.wall(config.drain_poll_seconds), stop_if_idle)

    def stop_if_idle() -> None:
        if engine.generation.unfinished:
            loop.call_later(engine.clock.wall(config.drain_poll_seconds), stop_if_idle)
        else:
            stopped.set()

    loop.call_later(engine.clock.wall(config.model_load_seconds), loaded)
    loop.add_signal_handler(signal.SIGTERM, drain)
    loop.add_signal_handler(signal.SIGINT, stopped.set)
    gc.collect()
    gc.freeze()
    await stopped.wait()
    server.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            await connections.close()
    metrics = engine.metrics
    log("stopped", stage=config.stage, answered=metrics.requests, latenessMaxSeconds=metrics.lateness.max)


def main(arguments: list[str] | None = None) -> int:
    """Run one engine process; returns its exit code (2: the configuration is wrong)."""
    parser = argparse.ArgumentParser(prog="cascadia_local.simulated_engine", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="JSON configuration of the engine")
    options = parser.parse_args(arguments)
    try:
        config, outcomes = load_config(options.config)
        uvloop.run(serve(config, outcomes))
    except InputError as error:
        sys.stderr.write(f"{error.source or options.config}: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
