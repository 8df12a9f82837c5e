"""CPU that the router spends on a request, against other proxies: `python benchmarks/router.py`.

A mock engine and a load generator share one core; the system under test has another to itself
(`router_systems`). The figure is the process's own CPU time, user and
system, over the requests answered. Rounds measure every system one after the other in a new order; what
counts is the median of the ratios within a round, since the machine's speed changes between rounds. A
round in which nginx is more than 20 % off its best is measured again.

LiteLLM's proxy answers some dozens of requests a second, so that it has rounds of its own, at the end.

The router is compiled, as it is shipped, unless `--interpreted` says otherwise.

One JSON line a figure. What is not installed (nginx, sglang-router, litellm) is left out and said so.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import time
from dataclasses import replace

import litellm_proxy
from compiled_router import compiled_router, image_python
from router_systems import (
    CONNECTIONS,
    CPUS,
    Bench,
    System,
    WrongAnswersError,
    bench,
    cpu_seconds,
    resident_mb,
    wait_until_idle,
)

OFF_BEST = 1.2
"""Most by which nginx's cost may exceed its best in a round that counts."""
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
    parser.add_argument("--interpreted", action="store_true", help="the router as developers install it, not compiled")
    parser.add_argument(
        "--python", help="the router's interpreter (default: the distribution's, which images carry; else this one)"
    )
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
    python = arguments.python or (sys.executable if arguments.interpreted else image_python())
    compiled = None if arguments.interpreted else compiled_router(python)
    sys.stderr.write(f"the router is {'compiled' if compiled else 'interpreted'}, its interpreter is {python}\n")
    with bench(python, compiled) as running:
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
