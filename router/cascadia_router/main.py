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
    stop, at_once = asyncio.Event(), asyncio.Event()

    def interrupt() -> None:
        (at_once if stop.is_set() else stop).set()

    # Only a second Ctrl-C cuts requests off: kubelet may well send SIGTERM twice.
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        await router.start()
        gc.freeze()  # what is here now stays: do not walk it in every collection
        gc.set_threshold(10_000)  # requests leave no cycles: seldom is soon enough
        await stop.wait()
        await router.stop(at_once)
    finally:
        await router.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a router until SIGTERM or SIGINT: it finishes what is in flight, within the request timeout.

    Another SIGINT after that cuts off what is still in flight.

    Args:
        argv: Arguments without the program's name; None: the process's.

    Returns:
        Exit status: 0, or 2 for a wrong configuration.
    """
    parser = argparse.ArgumentParser(
        prog="cascadia router",
        description="Run one router of a cascade.",
        epilog="SIGTERM or Ctrl-C: no new connection is taken, requests in flight are finished within the request "
        "timeout; Ctrl-C again cuts them off. Exit status 0.",
    )
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
