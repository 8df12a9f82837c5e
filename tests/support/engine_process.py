"""A simulated engine as a process of a test: started on a free port, spoken to over loopback, stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cascadia_solver.steptime import StepModel

DEADLINE_SECONDS = 30.0

STEP = StepModel(
    token_seconds=2.4e-5,
    logits_seconds=1.8e-6,
    weight_seconds=0.0056,
    expert_seconds=0.0,
    expert_miss=0.0,
    prefill_pair_seconds=8.8e-10,
    prefill_window_pair_seconds=0.0,
    decode_context_seconds=4.9e-8,
    decode_window_seconds=0.0,
    window_tokens=0.0,
    transfer_token_seconds=0.0,
    overhead_seconds=0.00056,
    prefill_share=1.0,
    decode_share=1.0,
    kv_capacity_tokens=40_000.0,
    max_running=16.0,
    chunk_tokens=2048.0,
)
"""An 8B model on one H100, but with a small cache and batch, so that tests reach their limits."""


def engine_config(**fields: Any) -> dict[str, Any]:
    """A valid configuration of a simulated engine, with some fields replaced."""
    return {
        "listen": "127.0.0.1:0",
        "servedModelName": "llama-8b",
        "stage": "small",
        "model": {"name": "small", "ability": 0.58},
        "step": list(STEP),
        "clockScale": 50.0,
        **fields,
    }


def command(config: Path) -> list[str]:
    """Command line of an engine process."""
    return [sys.executable, "-m", "cascadia_local.simulated_engine", "--config", str(config)]


@dataclass
class EngineProcess:
    """A running engine.

    Attributes:
        process: The process.
        address: ``host:port`` that it listens on.
        log: Its log lines so far, parsed.
    """

    process: subprocess.Popen[bytes]
    address: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://{self.address}"

    def follow(self) -> None:
        """Collect the log; runs in a thread until the process ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._arrived:
                self.log.append(json.loads(line) if line.startswith(b"{") else {"event": "text", "line": line.decode()})
                self._arrived.notify_all()

    def wait_for(self, event: str) -> dict[str, Any]:
        """Wait for an event in the log."""
        with self._arrived:
            found = self._arrived.wait_for(
                lambda: next((entry for entry in self.log if entry["event"] == event), None), DEADLINE_SECONDS
            )
        assert found, f"no {event!r} within {DEADLINE_SECONDS} s; the log: {self.log}"
        return found

    def request(self, path: str, body: Any = None) -> tuple[int, bytes]:
        """GET, or POST `body` (bytes as they are, anything else as JSON); returns status and body."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(self.url + path, data=data, timeout=DEADLINE_SECONDS) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def metrics(self) -> dict[str, float]:
        """Metrics by name, labels dropped (of histograms only sum and count are of use)."""
        lines = self.request("/metrics")[1].decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name.partition("{")[0]: float(value) for name, value in pairs}

    def wait_for_metric(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        end = time.monotonic() + DEADLINE_SECONDS
        while (now := self.metrics()[name]) != value:
            assert time.monotonic() < end, f"{name} is still {now}, not {value}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_SECONDS)


@contextmanager
def engine_process(directory: Path, *, wait_ready: bool = True, **fields: Any) -> Iterator[EngineProcess]:
    """Run an engine for the length of the block; it is killed at its end if it still runs."""
    path = directory / "engine.json"
    path.write_text(json.dumps(engine_config(**fields)))
    process = subprocess.Popen(command(path), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    engine = EngineProcess(process)
    follower = threading.Thread(target=engine.follow, daemon=True)
    follower.start()
    try:
        engine.address = engine.wait_for("listening")["address"]
        if wait_ready:
            engine.wait_for("ready")
        yield engine
    finally:
        process.kill()
        process.wait(DEADLINE_SECONDS)
        follower.join(DEADLINE_SECONDS)
        assert process.stderr is not None
        process.stderr.close()
