"""The router's command line: `python -m cascadia_router --config FILE.json`, or `cascadia router`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
from collections.abc import Sequence

import uvloop

from cascadia_api.errors import InputError
from cascadia_api.policy import RouterConfig
from cascadia_router import json_log
from cascadia_router.bootstrap import load_config
from cascadia_router.server import Router

__all__ = ["main"]


async def _serve(config: RouterConfig) -> None:
    router = Router(config)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await router.start()
        gc.freeze()  # what is here now stays: do not walk it in every collection
        gc.set_threshold(10_000)  # requests leave no cycles: seldom is soon enough
        await stop.wait()
        await router.stop()
    finally:
        await router.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a router until SIGTERM or SIGINT.

    Args:
        argv: Arguments without the program's name; None: the process's.

    Returns:
        Exit status: 0, or 2 for a wrong configuration.
    """
    parser = argparse.ArgumentParser(prog="cascadia router", description="Run one router of a cascade.")
    parser.add_argument("--config", required=True, metavar="FILE.json", help="RouterConfig as JSON")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config)
        json_log.configure()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config))
    except InputError as error:
        problems = "; ".join(str(problem) for problem in error.problems)
        sys.stderr.write(f"cascadia router: {error.source or arguments.config}: {problems}\n")
        return error.exit_code
    return 0
