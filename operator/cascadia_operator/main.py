"""The operator's command line: flags, logging, metrics, and Kopf's event loop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from cascadia_api.errors import InputError
from cascadia_operator.settings import DEFAULT_ENGINE_IMAGE, DEFAULT_ROUTER_IMAGE, Images, OperatorSettings

__all__ = ["main", "parse"]

_MOST_SECONDS = 86_400


def main(argv: Sequence[str] | None = None) -> int:
    """Run the operator until it is told to stop.

    Returns:
        The exit code: 0 after a signal, 2 where a flag or the kubeconfig is wrong.
    """
    flags = parse(argv)
    settings = OperatorSettings(
        namespaces=tuple(flags.namespace or ()),
        images=Images(engine=flags.engine_image, router=flags.router_image),
        router_acknowledgement=flags.router_acknowledgement,
        workers=flags.workers,
        resync_seconds=flags.resync_seconds,
        planning_deadline_seconds=flags.planning_deadline_seconds,
        engine_look_seconds=flags.engine_look_seconds,
    )
    import kopf
    from prometheus_client import start_http_server

    from cascadia_operator.cluster import KubernetesCluster
    from cascadia_operator.handlers import configure, register

    kopf.configure(
        verbose=flags.log_level == "debug",
        quiet=flags.log_level == "warning",
        log_format=kopf.LogFormat.JSON if flags.log_format == "json" else kopf.LogFormat.FULL,
    )
    # Kopf tells of every event that it hands on: they are hints to us, and far too many.
    for chatty in ("kopf.objects", "kopf.activities", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.DEBUG if flags.log_level == "debug" else logging.WARNING)
    try:
        KubernetesCluster(threads=1).close()
        if flags.metrics_port:
            start_http_server(flags.metrics_port)
    except InputError as error:
        sys.stderr.write(f"cascadia operator: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"cascadia operator: --metrics-port: {flags.metrics_port}: {error.strerror}: name another\n")
        return InputError.exit_code
    registry = kopf.get_default_registry()
    register(registry, settings)
    kopf_settings = kopf.OperatorSettings()
    configure(kopf_settings)
    logging.getLogger("cascadia.operator").info(
        "looking after %s", ", ".join(settings.namespaces) or "the whole cluster"
    )
    asyncio.run(
        kopf.operator(
            registry=registry,
            settings=kopf_settings,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
            liveness_endpoint=flags.liveness,
        )
    )
    return 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags.

    Raises:
        SystemExit: A flag is wrong (exit code 2), or help was asked for.
    """
    parser = argparse.ArgumentParser(
        prog="cascadia operator",
        description="Runs CascadeDeployments: plans them, starts engines and routers, and keeps both as planned.",
        epilog="In a cluster: cascadia operator --all-namespaces --log-format json --liveness http://0.0.0.0:8083/healthz",
    )
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("-n", "--namespace", action="append", help="namespace to look after; may be given several times")
    scope.add_argument("-A", "--all-namespaces", action="store_true", help="look after the whole cluster (the default)")
    parser.add_argument("--engine-image", default=DEFAULT_ENGINE_IMAGE, help="default SGLang image (%(default)s)")
    parser.add_argument("--router-image", default=DEFAULT_ROUTER_IMAGE, help="image of the routers (%(default)s)")
    parser.add_argument(
        "--router-acknowledgement",
        choices=("http", "none"),
        default="http",
        help="http: before a step of a transition ask every ready router for the policy that it enforces (default); "
        "none: take it for granted, for clusters whose pods are simulated and cannot be asked (for engines' metrics "
        "neither)",
    )
    parser.add_argument("--workers", type=_count, default=8, help="cascades reconciled at once (%(default)s)")
    parser.add_argument(
        "--resync-seconds", type=_seconds, default=60.0, help="look at each cascade at least this often (%(default)s)"
    )
    parser.add_argument(
        "--planning-deadline-seconds", type=_seconds, default=60.0, help="for planning one cascade (%(default)s)"
    )
    parser.add_argument(
        "--engine-look-seconds",
        type=_seconds_or_never,
        default=60.0,
        help="look at the engines' metrics this often, to learn how far off the cost model is; 0: never (%(default)s)",
    )
    parser.add_argument(
        "--liveness", type=_url, help="URL to answer liveness probes at, as in http://0.0.0.0:8083/healthz"
    )
    parser.add_argument(
        "--metrics-port", type=_port, default=0, help="port of Prometheus metrics; 0: none (the default)"
    )
    parser.add_argument("--log-format", choices=("plain", "json"), default="plain", help="of the log (%(default)s)")
    parser.add_argument("--log-level", choices=("debug", "info", "warning"), default="info", help="(%(default)s)")
    return parser.parse_args(argv)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and up to {_MOST_SECONDS}")
    return value


def _seconds_or_never(text: str) -> float:
    return 0.0 if text == "0" else _seconds(text)


def _count(text: str) -> int:
    return _whole(text, 1, 256)


def _port(text: str) -> int:
    return _whole(text, 0, 65_535)


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return int(text)


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        whole = parts.scheme == "http" and bool(parts.hostname) and parts.port is not None
    except ValueError:
        whole = False
    if not whole:
        raise argparse.ArgumentTypeError(f"{text!r} is not http://HOST:PORT/PATH")
    return text
