"""`python -m tests.fuzz.guided requests --seconds 600`: the same checks, steered by which lines of the router ran.

Needs atheris (`pip install atheris`), which is no part of the development environment. It turns libFuzzer's bytes
into messages by hypothesis' strategies, except for `raw`: there they are what a client sends.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("the guided fuzzer needs atheris: .venv/bin/pip install atheris")

with atheris.instrument_imports(include=["cascadia_router", "cascadia_api"]):
    from tests.fuzz import checks
    from tests.fuzz.__main__ import TARGETS, attempts

from hypothesis import HealthCheck, settings

_SEEDS = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
    b"POST /v1/x HTTP/1.1\r\nhost: a\r\nx-request-id: r\r\nauthorization: Bearer k\r\ncontent-length: 2\r\n\r\n{}",
    b"POST /v1/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n",
)


def _raw(data: bytes) -> None:
    """The first byte says where what follows is cut."""
    checks.check_requests(data[1:], [data[0] * 7, data[0] * 31] if data else [])


def _target(name: str) -> Callable[[bytes], object]:
    if name == "raw":
        return _raw
    limits = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    return attempts(name, limits).hypothesis.fuzz_one_input  # type: ignore[attr-defined, no-any-return]


def main() -> None:
    """Run until the time is over, or something breaks: libFuzzer then writes down the bytes, and exits with 77."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.add_argument("target", choices=["raw", *TARGETS])
    parser.add_argument("--seconds", type=int, default=600, help="how long")
    parser.add_argument("--crash", type=Path, help="run the bytes of this file only")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    target = _target(arguments.target)
    if arguments.crash is not None:
        target(arguments.crash.read_bytes())
        return
    with tempfile.TemporaryDirectory(prefix="cascadia-fuzz-") as corpus:
        for place, seed in enumerate(_SEEDS if arguments.target == "raw" else ()):
            (Path(corpus) / str(place)).write_bytes(b"\x00" + seed)
        atheris.Setup([sys.argv[0], f"-max_total_time={arguments.seconds}", "-max_len=4096", corpus], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
