"""The server as a process group of its own, for the length of a block."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.sglang_server.install import HERE

__all__ = ["ServerError", "sglang_server"]

_START_SECONDS = 600.0
_ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(HERE / "stand_ins"),
    "SGLANG_REQUEST_STATE_WAIT_TIMEOUT": "1",  # as the operator sets it: how often it looks who has left
}
_OPTIONS = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--disable-overlap-schedule", "--enable-metrics"),
    *("--max-total-tokens", "8192", "--context-length", "2048", "--mem-fraction-static", "0.1"),
)


class ServerError(RuntimeError):
    """The server did not start; the message holds the end of its log."""


@contextmanager
def sglang_server(home: Path) -> Iterator[str]:
    """Run it; yields its ``host:port``.

    Args:
        home: See `ensure_sglang_server`.

    Raises:
        ServerError: It ended, or was not ready in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = home / f"server-{port}.log"
    command = [str(home / "bin" / "python"), "-m", "sglang.launch_server", "--model-path", str(home / "model")]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), *_OPTIONS],
            env=os.environ | _ENVIRONMENT,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, port, log)
        yield f"127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):  # its schedulers outlive it if only it is asked to end
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.unlink()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            words = log.read_text(errors="replace")[-2000:]
            if process.poll() is not None:
                raise ServerError(f"it ended with code {process.returncode}:\n{words}") from None
            if time.monotonic() > end:
                raise ServerError(f"it was not ready within {_START_SECONDS:.0f} s:\n{words}") from None
        time.sleep(0.5)
