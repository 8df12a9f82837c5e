"""The llama.cpp engine with a real small model, as a process of a test; `make engine` installs both."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["DEADLINE_SECONDS", "llamacpp_process"]

DEADLINE_SECONDS = 120.0


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while True:
        assert process.poll() is None, f"ended with code {process.returncode}"
        assert time.monotonic() < end, "not ready in time"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                assert answer.status == 200
                return
        except urllib.error.URLError:
            time.sleep(0.1)  # a probe's interval: there is nothing to wait on before it listens


@contextmanager
def llamacpp_process(
    directory: Path, *, served_model_name: str = "smollm2", **fields: Any
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run the engine for the length of the block; it is killed at its end if it still runs.

    Yields:
        Its ``host:port`` and its process.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    path = directory / "engine.json"
    path.write_text(json.dumps({"listen": address, "servedModelName": served_model_name, "stage": "small", **fields}))
    process = subprocess.Popen([sys.executable, "-m", "cascadia_local.llamacpp_engine", "--config", str(path)])
    try:
        _wait_until_healthy(f"http://{address}", process)
        yield address, process
    finally:
        process.kill()
        process.wait(DEADLINE_SECONDS)
