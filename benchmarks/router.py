"""CPU that the router spends on a request: `python benchmarks/router.py [--seconds S] [--rounds N]`.

A canned engine and a closed-loop client, each a process of its own, around one router process (two for
escalations); all pinned so that the router has a core to itself. The figure is the router's own CPU
time, user and system, over the requests answered, the median of the rounds. One JSON line a figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import uvloop

CONNECTIONS = 64
LAST_CPU = max(os.sched_getaffinity(0))
TICK = os.sysconf("SC_CLK_TCK")
PROMPT = "x" * 900


def canned_answer(logprob: float) -> bytes:
    """A chat completion of about 1.9 KB with 20 log-probabilities."""
    tokens = [{"token": f" tok{k}", "bytes": [32, 116, 111], "logprob": logprob, "top_logprobs": []} for k in range(20)]
    message = {"role": "assistant", "content": "a word and another " * 5}
    body = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": message, "logprobs": {"content": tokens}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 300, "completion_tokens": 20, "total_tokens": 320},
    }  # fmt: skip
    payload = json.dumps(body, separators=(",", ":")).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        len(payload),
        payload,
    )


class Engine(asyncio.Protocol):
    """Answers at once. A share `low` of its answers has a low score; streams are 20 chunks 10 ms apart."""

    answered = 0
    low = 0.0
    high_answer, low_answer = canned_answer(-0.05), canned_answer(-2.0)
    chunk_event = (
        b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
        b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
    )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator or (head.startswith(b"POST") and not body.endswith(b"}")):
            return
        self.buffer = b""
        if head.startswith(b"GET"):
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        elif b'"stream":true' in body or b'"stream": true' in body:
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            self.stream(20)
        else:
            Engine.answered += 1
            is_low = Engine.answered % 10 < Engine.low * 10
            self.transport.write(self.low_answer if is_low else self.high_answer)

    def stream(self, left: int) -> None:
        """Send an event and schedule the next; after the last, end."""
        if self.transport.is_closing():
            return
        event = self.chunk_event if left else b"data: [DONE]\n\n"
        self.transport.write(b"%x\r\n%s\r\n" % (len(event), event) + (b"" if left else b"0\r\n\r\n"))
        if left:
            asyncio.get_running_loop().call_later(0.01, self.stream, left - 1)


def run_engine(low: float, pipe: object) -> None:
    os.sched_setaffinity(0, {0})
    Engine.low = low

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])  # type: ignore[attr-defined]
        await server.serve_forever()

    uvloop.run(serve())


class Client(asyncio.Protocol):
    """One connection of the closed loop."""

    done = 0
    bad = 0

    def __init__(self, request: bytes, *, stream: bool) -> None:
        self.request = request
        self.stream = stream
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.buffer += data
        if self.stream:
            complete = self.buffer.endswith(b"0\r\n\r\n")
        else:
            head, separator, body = self.buffer.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]) if separator else 0
            complete = bool(separator) and len(body) >= length
        if complete:
            Client.done += 1
            Client.bad += not self.buffer.startswith(b"HTTP/1.1 200")
            self.buffer = b""
            self.transport.write(self.request)


async def load(port: int, seconds: float, pid: int, *, stream: bool) -> tuple[float, float]:
    """Run the closed loop; return the router's CPU µs per request and the requests per second."""
    body = json.dumps({"model": "chat", "messages": [{"role": "user", "content": PROMPT}], "stream": stream}).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nuser-agent: bench\r\naccept: */*\r\n"
        b"authorization: Bearer none\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    loop = asyncio.get_running_loop()
    connections = [
        await loop.create_connection(lambda: Client(request, stream=stream), "127.0.0.1", port)
        for _ in range(CONNECTIONS)
    ]
    await asyncio.sleep(min(1.0, seconds / 2))
    cpu, done, start = cpu_seconds(pid), Client.done, time.monotonic()
    await asyncio.sleep(seconds)
    cpu, done, took = cpu_seconds(pid) - cpu, Client.done - done, time.monotonic() - start
    for transport, _ in connections:
        transport.abort()
    if Client.bad or not done:
        raise SystemExit(f"{Client.bad} answers of {Client.done} were not 200")
    return cpu / done * 1e6, done / took


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def start_router(folder: Path, stage: str, engine: int) -> tuple[subprocess.Popen[str], dict[str, str]]:
    config = {
        "stage": stage, "replica": f"{stage}-0", "engine": f"127.0.0.1:{engine}", "client": "127.0.0.1:0",
        "peers": "127.0.0.1:0", "admin": "127.0.0.1:0", "policyFile": str(folder / "policy.json"),
        "peerSecretFile": str(folder / "secret"),
    }  # fmt: skip
    file = folder / f"{stage}.json"
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", "cascadia_router", "--config", str(file)]
    router = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert router.stderr is not None
    where: dict[str, str] = {}
    while where.get("event") != "listening":
        where = json.loads(router.stderr.readline())
    os.sched_setaffinity(router.pid, {LAST_CPU if stage == "small" else 0})
    return router, where


def write_policy(folder: Path, small: str, large: str, threshold: float | None) -> None:
    stages = [
        {
            "name": "small",
            "servedModelName": "m",
            "threshold": threshold,
            "endpoints": [{"replica": "small-0", "address": small}],
        }
    ]
    if threshold is not None:
        stages.append(
            {
                "name": "large",
                "servedModelName": "m",
                "threshold": None,
                "endpoints": [{"replica": "large-0", "address": large}],
            }
        )
    policy = {"cascade": "chat", "policyRevision": 1, "planId": "bench", "stages": stages}
    (folder / "policy.new").write_text(json.dumps(policy))
    (folder / "policy.new").rename(folder / "policy.json")


def measure(low: float, threshold: float | None, seconds: float, *, stream: bool = False) -> tuple[float, float, float]:
    engines, ports = [], []
    for share in (low, 0.0):
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=run_engine, args=(share, there), daemon=True)
        process.start()
        engines.append(process)
        ports.append(here.recv())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "secret").write_text("s" * 32)
        routers = [start_router(folder, stage, port) for stage, port in zip(("small", "large"), ports, strict=True)]
        write_policy(folder, routers[0][1]["peers"], routers[1][1]["peers"], threshold)
        time.sleep(1.5)  # for the policy file's poll and the engine's first probe
        try:
            os.sched_setaffinity(0, {0})
            router, where = routers[0]
            cost, rate = uvloop.run(load(int(where["client"].rpartition(":")[2]), seconds, router.pid, stream=stream))
            return cost, rate, resident_mb(router.pid)
        finally:
            for router, _ in routers:
                router.kill()
                router.communicate()
            for process in engines:
                process.kill()
                process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("accept", "escalate-30", "stream-20"))
    arguments = parser.parse_args()
    cases = {
        "accept": {"low": 0.0, "threshold": 0.5},
        "escalate-30": {"low": 0.3, "threshold": 0.5},
        "stream-20": {"low": 0.0, "threshold": None, "stream": True},
    }
    for name, case in cases.items():
        if arguments.only not in {None, name}:
            continue
        rounds = []
        for _ in range(arguments.rounds):
            Client.done = Client.bad = 0
            rounds.append(measure(seconds=arguments.seconds, **case))  # type: ignore[arg-type]
        cost, rate, memory = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(
            json.dumps(
                {
                    "name": f"router-{name}-cpu",
                    "value": round(cost, 1),
                    "unit": "us/request",
                    "bar": None,
                    "holds": None,
                }
            )
        )
        print(
            json.dumps(
                {"name": f"router-{name}-rate", "value": round(rate), "unit": "requests/s", "bar": None, "holds": None}
            )
        )
        print(
            json.dumps(
                {
                    "name": f"router-{name}-memory",
                    "value": round(memory, 1),
                    "unit": "MB",
                    "bar": 60,
                    "holds": memory <= 60,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
