"""CPU that the router spends on a request, against other proxies: `python benchmarks/router.py`.

A mock engine and a closed-loop load generator in C (`router_load/`, built with gcc at run time) share one
core; the system under test has another to itself. The figure is the process's own CPU time, user and
system, over the requests answered. Rounds measure every system one after the other in a new order; what
counts is the median of the ratios within a round, since the machine's speed changes between rounds. A
round in which nginx is more than 20 % off its best is measured again.

LiteLLM's proxy answers some dozens of requests a second, so that it has rounds of its own, at the end.

One JSON line a figure. What is not installed (nginx, sglang-router, litellm) is left out and said so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import litellm_proxy

CPUS = sorted(os.sched_getaffinity(0))
LOAD_CPU, ROUTER_CPU = CPUS[0], CPUS[-1]
CONNECTIONS = 64
API_KEY = b"sk-0123456789abcdef0123456789abcdef"
OFF_BEST = 1.2
"""Most by which nginx's cost may exceed its best in a round that counts."""
SOURCES = Path(__file__).with_name("router_load")
BARS: dict[tuple[str, str], float] = {
    ("accept", "nginx"): 0.45,
    ("escalate-30", "nginx"): 0.38,
    ("stream-20", "nginx"): 0.6,
    ("accept", "sglang-router"): 3.5,
    ("escalate-30", "sglang-router"): 3.0,
    ("stream-20", "sglang-router"): 1.1,
}
"""Least speed of the router (requests per second of CPU) as a multiple of the other's."""
LITELLM_BAR = 0.01
"""Most speed of LiteLLM's proxy as a multiple of the router's."""
LITELLM_SECONDS = 8.0
"""A burst of load on LiteLLM: its 64 first answers alone take more than one."""


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

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder = folder
        self.python = python
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

    def router(self, stage: str, engine: int, cpu: int, folder: Path) -> tuple[int, dict[str, str]]:
        """Start one router of a cascade; return its process id and where it listens."""
        config = {
            "stage": stage, "replica": f"{stage}-0", "engine": f"127.0.0.1:{engine}", "client": "127.0.0.1:0",
            "peers": "127.0.0.1:0", "admin": "127.0.0.1:0", "policyFile": str(folder / "policy.json"),
            "peerSecretFile": str(folder / "secret"), "apiKeys": [str(folder / "keys")],
        }  # fmt: skip
        file = folder / f"{stage}.json"
        file.write_text(json.dumps(config))
        process = self.run(cpu, self.python, "-m", "cascadia_router", "--config", file, log=True)
        assert process.stderr is not None
        where: dict[str, str] = {}
        while where.get("event") != "listening":
            where = json.loads(process.stderr.readline())
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
def bench(python: str = sys.executable) -> Iterator[Bench]:
    """A bench that is cleared away."""
    with tempfile.TemporaryDirectory(prefix="router-bench-") as folder:
        running = Bench(Path(folder), python)
        try:
            yield running
        finally:
            running.stop()


def figure(name: str, value: float, unit: str, bar: float | None = None, *, at_most: bool = False) -> None:
    """Print one figure."""
    holds = None if bar is None else value <= bar if at_most else value >= bar
    rounded = round(value, 3 if value >= 0.1 else 5)
    print(json.dumps({"name": name, "value": rounded, "unit": unit, "bar": bar, "holds": holds}), flush=True)


def rounds_of(running: Bench, systems: list[System], rounds: int, seconds: float, pause: float) -> None:
    """Measure all systems, round by round; leave the rounds that count in their `costs`."""
    reference = next((each for each in systems if each.name == "nginx"), None)
    for _ in range(3 * rounds):
        for system in random.sample(systems, len(systems)):
            running.measure(system, seconds)
            time.sleep(pause)
        costs = reference.costs if reference else systems[0].costs
        good = [k for k, cost in enumerate(costs) if not reference or cost <= OFF_BEST * min(costs)]
        if len(good) >= rounds:
            break
    for system in systems:
        system.costs = [system.costs[k] for k in good]
        system.chain = [system.chain[k] for k in good]


def report_case(case: str, systems: list[System], accept: dict[str, System]) -> None:
    """Print a case's figures; an escalation is compared with the others' accept, which is all that they do."""
    ours = next(each for each in systems if each.name == "router" and each.case == case)
    figure(f"router-{case}-cpu", statistics.median(ours.costs), "us/request")
    if case == "escalate-30":
        figure(f"router-{case}-cpu-both-routers", statistics.median(ours.chain), "us/request")
    for name in ("nginx", "sglang-router"):
        other = next((each for each in systems if (each.name, each.case) == (name, case)), accept.get(name))
        if other is None:
            continue
        if other.case == case:
            figure(f"{name}-{case}-cpu", statistics.median(other.costs), "us/request")
        ratios = [theirs / mine for theirs, mine in zip(other.costs, ours.costs, strict=True)]
        figure(f"router-{case}-vs-{name}", statistics.median(ratios), "x", BARS[case, name])


def against_litellm(
    running: Bench, router: System, program: str | None, engine: int, rounds: int, seconds: float
) -> list[System]:
    """Measure the router and LiteLLM's proxy in turn; print the figures; return the proxy if there is one.

    The first burst is for warming up. What LiteLLM does after the load has broken off counts as its cost, and the
    requests then under way count as answered, which is in its favour.
    """
    if program is None:
        return []
    ours, litellm = replace(router, costs=[], chain=[]), running.litellm(program, engine)
    for _ in range(1 + rounds):
        running.measure(ours, seconds)
        before = cpu_seconds(litellm.pids)
        try:
            answers = running.load(litellm.port, LITELLM_SECONDS)["answers"] + CONNECTIONS
        except WrongAnswersError as error:
            raise SystemExit(f"litellm: {error}") from None
        wait_until_idle(litellm.pids)
        litellm.costs.append((cpu_seconds(litellm.pids) - before) / answers * 1e6)
    del ours.costs[0], litellm.costs[0]
    figure("litellm-accept-cpu", statistics.median(litellm.costs), "us/request")
    ratios = [mine / theirs for mine, theirs in zip(ours.costs, litellm.costs, strict=True)]
    figure("litellm-accept-vs-router", statistics.median(ratios), "x", LITELLM_BAR, at_most=True)
    return [litellm]


def latency(running: Bench, systems: list[System], seconds: float, rounds: int) -> None:
    """Print the median latency at one connection, where nothing queues."""
    seen: dict[str, list[float]] = {each.name: [] for each in systems}
    for _ in range(rounds):
        for system in systems:
            seen[system.name].append(running.load(system.port, seconds, connections=1)["p50Us"])
    medians = {name: statistics.median(values) for name, values in seen.items()}
    for name, value in medians.items():
        bar = medians["nginx"] + 500 if name == "router" and "nginx" in medians else None
        figure(f"{name}-one-connection-p50", value, "us", bar, at_most=True)


def plot(systems: list[System], file: str) -> None:
    """Draw the CPU cost of every system, each round a dot."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    picture, axis = plt.subplots(figsize=(8, 0.5 * len(systems) + 1.5), layout="constrained")
    for row, system in enumerate(sorted(systems, key=lambda each: (each.case, each.name), reverse=True)):
        axis.barh(row, statistics.median(system.costs), color="tab:blue" if system.name == "router" else "silver")
        axis.plot(system.costs, [row] * len(system.costs), "k.", markersize=3)
        axis.text(0, row, f" {system.name}, {system.case}", va="center")
    axis.set(xlabel="CPU µs per request (bar: median, dots: rounds)", yticks=[], xscale="symlog", xlim=(0, None))
    picture.savefig(file)


def find_sglang_router(given: str | None) -> str | None:
    """The program's path, or None with a word why it is left out."""
    found = shutil.which(given or "sglang-router")
    if found is None:
        sys.stderr.write(
            "sglang-router is not installed: left out (pip install sglang-router==0.3.2 in its own venv)\n"
        )
    return found


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each burst of load")
    parser.add_argument("--pause", type=float, default=0.2, help="between bursts, s")
    parser.add_argument("--only", nargs="+", choices=("accept", "escalate-30", "stream-20", "latency", "litellm"))
    parser.add_argument("--sglang-router", metavar="PROGRAM", help="path to sglang-router's program")
    parser.add_argument("--litellm", metavar="PROGRAM", help="path to litellm's program (its proxy)")
    parser.add_argument("--python", default=sys.executable, help="the router's interpreter")
    parser.add_argument("--plot", metavar="FILE.png")
    arguments = parser.parse_args()
    if shutil.which("gcc") is None or shutil.which("taskset") is None or len(CPUS) < 2:
        sys.stderr.write("gcc, taskset (util-linux) and two cores are needed: nothing was measured\n")
        return 1
    rounds = arguments.rounds or (3 if arguments.quick else 8)
    seconds = arguments.seconds or (0.7 if arguments.quick else 1.5)
    wanted = set(arguments.only or ("accept", "escalate-30", "stream-20", "latency", "litellm"))
    sglang = find_sglang_router(arguments.sglang_router)
    litellm = litellm_proxy.find_litellm(arguments.litellm) if "litellm" in wanted else None
    has_nginx = shutil.which("nginx") is not None
    if not has_nginx:
        sys.stderr.write("nginx is not installed: left out (apt-get install nginx)\n")
    with bench(arguments.python) as running:
        compare(running, wanted, rounds, seconds, arguments, sglang, litellm, has_nginx=has_nginx)
    return 0


def compare(
    running: Bench,
    wanted: set[str],
    rounds: int,
    seconds: float,
    arguments: argparse.Namespace,
    sglang: str | None,
    litellm: str | None,
    *,
    has_nginx: bool,
) -> None:
    """Start what is compared, measure it, and print the figures."""
    sure, unsure = running.engine("answer"), running.engine("answer", "low-answer")

    def start(case: str) -> list[System]:
        made = [running.cascade(case, sure, sure)]
        if has_nginx:
            made.append(running.nginx(case, sure))
        if sglang:
            made.append(running.sglang_router(sglang, case, sure))
        return made

    plain = start("accept")
    if "escalate-30" in wanted:
        plain.append(running.cascade("escalate-30", unsure, sure))
    streams = start("stream-20") if "stream-20" in wanted else []
    for system in plain + streams:
        running.warm_up(system)
    if wanted & {"accept", "escalate-30"}:
        rounds_of(running, plain, rounds, seconds, arguments.pause)
        accept = {each.name: each for each in plain if each.case == "accept"}
        for case in ("accept", "escalate-30"):
            if case in wanted:
                report_case(case, plain, accept)
    if streams:
        rounds_of(running, streams, rounds, max(seconds, 1.0), arguments.pause)
        report_case("stream-20", streams, {})
    if "latency" in wanted:
        latency(running, [each for each in plain if each.case == "accept"], seconds / 2, min(rounds, 4))
    memory = max(resident_mb(each.pids[0]) for each in plain + streams if each.name == "router")
    figure("router-rss", memory, "MB", 60, at_most=True)
    slow = against_litellm(running, plain[0], litellm, sure, min(rounds, 3), seconds)
    if arguments.plot:
        plot([each for each in plain + streams + slow if each.costs], arguments.plot)


if __name__ == "__main__":
    raise SystemExit(main())
