"""What the router is measured against, the router itself, and the load on them: processes of one benchmark.

A mock engine and a closed-loop load generator in C (`router_load/`, built with gcc at run time) share one
core; the system under test has another to itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import litellm_proxy
from compiled_router import environment

__all__ = [
    "CONNECTIONS",
    "CPUS",
    "Bench",
    "System",
    "WrongAnswersError",
    "bench",
    "cpu_seconds",
    "resident_mb",
    "wait_until_idle",
]

CPUS = sorted(os.sched_getaffinity(0))
LOAD_CPU, ROUTER_CPU = CPUS[0], CPUS[-1]
CONNECTIONS = 64
API_KEY = b"sk-0123456789abcdef0123456789abcdef"
SOURCES = Path(__file__).with_name("router_load")


@dataclass
class System:
    """One system under test, running.

    Attributes:
        name: What it is.
        case: What is asked of it: `accept`, `escalate-30` or `stream-20`.
        port: Where it listens.
        pids: Processes whose CPU counts.
        further: Processes whose CPU is told apart (the next stage's router).
        costs: CPU µs a request, by round; `chain` with the further processes'.
    """

    name: str
    case: str
    port: int
    pids: list[int]
    further: list[int] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    chain: list[float] = field(default_factory=list)


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of processes with all their threads, to the nanosecond: see clock_getcpuclockid(3)."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def resident_mb(pid: int) -> float:
    """Resident memory, MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, path: str, seconds: float = 30.0, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until a GET is answered with 200, as long as the process runs."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).status == 200:
                return
        if process is not None and process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode} before it answered {path}")
        if time.monotonic() > end:
            raise SystemExit(f"nothing answered {path} on port {port} within {seconds:g} s")
        time.sleep(0.1)


def wait_until_idle(pids: list[int], seconds: float = 10.0) -> None:
    """Wait until processes use less than 5 % of a core, so that what they still do disturbs nobody's round."""
    end = time.monotonic() + seconds
    before = cpu_seconds(pids)
    while time.monotonic() < end:
        time.sleep(0.2)
        now = cpu_seconds(pids)
        if now - before < 0.01:
            return
        before = now
    raise SystemExit(f"processes {pids} were still busy {seconds:g} s after the load")


def request_bytes(*, stream: bool) -> bytes:
    """A chat completion of about 1 KB; the load generator numbers the mark."""
    messages = [{"role": "user", "content": "x" * 760}]
    fields = {"model": "chat", "messages": messages, "max_tokens": 100, "user": "@" * 8, "stream": stream}
    body = json.dumps(fields, separators=(",", ":")).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n"
        b"Authorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (API_KEY, len(body), body)
    )


def answer_bytes(logprob: float) -> bytes:
    """A chat completion of about 2 KB with 20 log-probabilities, as an engine writes it."""
    tokens = [
        {"token": f" tok{k}", "bytes": [32, 116, 111], "logprob": logprob - k / 1000, "top_logprobs": []}
        for k in range(20)
    ]
    message = {"role": "assistant", "content": "a word and another " * 5}
    fields = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": message, "logprobs": {"content": tokens}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 300, "completion_tokens": 20, "total_tokens": 320},
    }  # fmt: skip
    body = json.dumps(fields, separators=(",", ":")).encode()
    return (
        b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: %d\r\n"
        b"content-type: application/json\r\n\r\n%s" % (len(body), body)
    )


class WrongAnswersError(Exception):
    """A system did not answer every request with 200."""


class Bench:
    """Everything that runs, in one temporary folder."""

    def __init__(self, folder: Path, python: str, compiled: Path | None) -> None:
        self.folder = folder
        self.python = python
        self.compiled = compiled
        self.processes: list[subprocess.Popen[str]] = []
        for name in ("load", "engine"):
            subprocess.run(["gcc", "-O2", "-o", folder / name, SOURCES / f"{name}.c"], check=True)
        for name, data in (
            ("request", request_bytes(stream=False)),
            ("stream-request", request_bytes(stream=True)),
            ("answer", answer_bytes(-0.05)),
            ("low-answer", answer_bytes(-2.0)),
        ):
            (folder / name).write_bytes(data)

    def run(
        self, cpu: int, *command: object, log: bool = False, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a process on one core."""
        out = subprocess.PIPE if log else subprocess.DEVNULL
        words = ["taskset", "-c", str(cpu), *map(str, command)]
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=out, text=True, start_new_session=True, env=env
        )
        self.processes.append(process)
        return process

    def engine(self, *answers: str) -> int:
        """Start a mock engine; return its port."""
        port = free_port()
        self.run(LOAD_CPU, self.folder / "engine", port, *(self.folder / name for name in answers))
        wait_for(port, "/health")
        return port

    def nginx(self, case: str, engine: int) -> System:
        """Start nginx as a plain proxy with kept connections."""
        port, home = free_port(), self.folder / f"nginx-{case}"
        home.mkdir()
        buffering = "off" if case.startswith("stream") else "on"
        (home / "nginx.conf").write_text(f"""
            daemon off; worker_processes 1; pid {home}/pid; error_log stderr crit;
            events {{ worker_connections 4096; }}
            http {{
                access_log off; client_body_temp_path {home}; proxy_temp_path {home};
                fastcgi_temp_path {home}; uwsgi_temp_path {home}; scgi_temp_path {home};
                keepalive_requests 1000000000; client_body_buffer_size 16k;
                upstream engine {{ server 127.0.0.1:{engine}; keepalive 128; keepalive_requests 1000000000; }}
                server {{
                    listen 127.0.0.1:{port};
                    location / {{
                        proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
                        proxy_buffering {buffering};
                    }}
                }}
            }}""")
        master = self.run(ROUTER_CPU, shutil.which("nginx") or "nginx", "-p", home, "-c", home / "nginx.conf")
        wait_for(port, "/health")
        workers = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
        return System("nginx", case, port, [int(pid) for pid in workers])

    def sglang_router(self, program: str, case: str, engine: int) -> System:
        """Start sglang-router in front of one worker."""
        port = free_port()
        process = self.run(
            ROUTER_CPU, program, "launch", "--host", "127.0.0.1", "--port", port, "--policy", "round_robin",
            "--worker-urls", f"http://127.0.0.1:{engine}", "--prometheus-port", free_port(), "--log-level", "error",
            "--disable-circuit-breaker",  # it takes the streams that the load breaks off at its end for faults
        )  # fmt: skip
        wait_for(port, "/health")
        return System("sglang-router", case, port, [process.pid])

    def litellm(self, program: str, engine: int) -> System:
        """Start LiteLLM's proxy in front of the engine."""
        port, file = free_port(), self.folder / "litellm.yaml"
        file.write_text(litellm_proxy.config(engine, API_KEY.decode()))
        command = litellm_proxy.arguments(file, port)
        process = self.run(ROUTER_CPU, program, *command, env=litellm_proxy.environment(self.folder))
        wait_for(port, litellm_proxy.HEALTH, litellm_proxy.START_SECONDS, process)
        return System("litellm", "accept", port, [process.pid])

    def router(self, stage: str, engine: int, cpu: int, folder: Path) -> tuple[int, dict[str, Any]]:
        """Start one router of a cascade; return its process id and where it listens."""
        config = {
            "stage": stage, "replica": f"{stage}-0", "engine": f"127.0.0.1:{engine}", "client": "127.0.0.1:0",
            "peers": "127.0.0.1:0", "admin": "127.0.0.1:0", "policyFile": str(folder / "policy.json"),
            "peerSecretFile": str(folder / "secret"), "apiKeys": [str(folder / "keys")],
        }  # fmt: skip
        file = folder / f"{stage}.json"
        file.write_text(json.dumps(config))
        env = environment(self.compiled) if self.compiled else None
        process = self.run(cpu, self.python, "-m", "cascadia_router", "--config", file, log=True, env=env)
        assert process.stderr is not None
        where: dict[str, Any] = {}
        while where.get("event") != "listening":
            where = json.loads(process.stderr.readline())
        assert where["compiled"] is (self.compiled is not None), where
        return process.pid, where

    def cascade(self, case: str, engine: int, next_engine: int) -> System:
        """Start a cascade of two stages with a router each; only a stream's is a last stage alone."""
        folder = self.folder / f"cascade-{case}"
        folder.mkdir()
        (folder / "secret").write_text("s" * 32)
        (folder / "keys").write_bytes(API_KEY)
        pid, where = self.router("small", engine, ROUTER_CPU, folder)
        further, there = self.router("large", next_engine, LOAD_CPU, folder)
        stages = [
            {"name": name, "servedModelName": "m", "threshold": threshold,
             "endpoints": [{"replica": f"{name}-0", "address": address}]}
            for name, threshold, address in (("small", 0.5, where["peers"]), ("large", None, there["peers"]))
        ]  # fmt: skip
        if case == "stream-20":
            stages = [stages[0] | {"threshold": None}]
        rates = {"default": {"requestsPerMinute": 10**9, "tokensPerMinute": 10**9}}
        policy = {"cascade": "chat", "policyRevision": 1, "planId": "plan-0123456789ab", "stages": stages}
        policy |= {"rateLimits": rates, "limits": {}}
        (folder / "policy.new").write_text(json.dumps(policy))
        (folder / "policy.new").rename(folder / "policy.json")
        for each in (where, there):
            wait_for(int(each["admin"].rpartition(":")[2]), "/readyz")
        return System("router", case, int(where["client"].rpartition(":")[2]), [pid], [further])

    def load(
        self, port: int, seconds: float, *, stream: bool = False, connections: int = CONNECTIONS
    ) -> dict[str, float]:
        """Run the closed loop."""
        request = self.folder / ("stream-request" if stream else "request")
        command = ["taskset", "-c", str(LOAD_CPU), self.folder / "load", port, connections, seconds, request]
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
        result: dict[str, float] = json.loads(done.stdout)
        if result["bad"] or result["lost"] or not result["answers"]:
            raise WrongAnswersError(f"not every answer was 200: {result}")
        return result

    def warm_up(self, system: System) -> None:
        """Load a system once before it counts; sglang-router may take a while to find its worker."""
        for _ in range(20 if system.name == "sglang-router" else 1):
            with contextlib.suppress(WrongAnswersError):
                self.load(system.port, 0.3, stream=system.case == "stream-20")
                return
            time.sleep(0.5)
        raise SystemExit(f"{system.name}, {system.case}: not every answer was 200 before the first round")

    def measure(self, system: System, seconds: float) -> None:
        """One burst of load."""
        before, further = cpu_seconds(system.pids), cpu_seconds(system.further)
        try:
            answers = self.load(system.port, seconds, stream=system.case == "stream-20")["answers"]
        except WrongAnswersError as error:
            raise SystemExit(f"{system.name}, {system.case}: {error}") from None
        spent = cpu_seconds(system.pids) - before
        system.costs.append(spent / answers * 1e6)
        system.chain.append((spent + cpu_seconds(system.further) - further) / answers * 1e6)

    def stop(self) -> None:
        """End what was started."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            try:
                process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


@contextlib.contextmanager
def bench(python: str = sys.executable, compiled: Path | None = None) -> Iterator[Bench]:
    """A bench that is cleared away.

    Args:
        python: The routers' interpreter.
        compiled: Where the compiled router is; None for the one that the interpreter has installed.
    """
    with tempfile.TemporaryDirectory(prefix="router-bench-") as folder:
        running = Bench(Path(folder), python, compiled)
        try:
            yield running
        finally:
            running.stop()
