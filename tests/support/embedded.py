"""A small cascade in the embedded runtime, with plans made by hand: no planner, no numba."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.clock import ScaledClock
from cascadia_api.load import load_manifest
from cascadia_api.plan import Plan, PlanDemand, PlanLatency, PlanQuality, PlanSolver, PlanStage, ReplicaGroup
from cascadia_local.engine_commands import SimulationSettings
from cascadia_local.engines import engine_starter
from cascadia_local.events import EventLog
from cascadia_local.ports import PortAllocator
from cascadia_local.replica import RunDirectory
from cascadia_local.runtime import EmbeddedRuntime
from cascadia_local.simulated_engine.calibration import LengthDistribution
from cascadia_local.simulated_engine.difficulty import default_abilities
from cascadia_local.traffic import Phase, TrafficConfig
from cascadia_local.traffic_process import TrafficProcess

MANIFEST = """
apiVersion: cascadia.dev/v1alpha1
kind: CascadeDeployment
metadata: {name: pair}
spec:
  models:
  - {name: small, source: {huggingFace: {repo: meta-llama/Llama-3.1-8B-Instruct}}}
  - {name: large, source: {huggingFace: {repo: meta-llama/Llama-3.1-70B-Instruct}}}
  gpus: {pools: [{name: h100, gpu: H100-SXM-80GB, maxGpus: 8}]}
  objective: {minQuality: "0.80"}
  workload:
    requestsPerSecond: "3"
    inputTokens: {mean: 500, p95: 1200}
    outputTokens: {mean: 100, p95: 250}
"""
Group = tuple[int, int]
"""Tensor parallelism and number of replicas."""


def pair(gpus: int = 8) -> CascadeDeployment:
    return load_manifest(MANIFEST.replace("maxGpus: 8", f"maxGpus: {gpus}"), "pair.yaml").cascade


def plan_of(
    small: list[Group], large: list[Group], *, threshold: float = 0.8, number: int = 1, rate: float = 3.0
) -> Plan:
    """A plan for `pair` with these replicas."""

    def stage(name: str, groups: list[Group], threshold: float | None, reach: float) -> PlanStage:
        count = sum(replicas for _, replicas in groups)
        return PlanStage(
            name=name,
            threshold=threshold,
            reach=reach,
            gpus=sum(tp * replicas for tp, replicas in groups),
            pool="h100" if groups else None,
            replicas=[
                ReplicaGroup(tensor_parallel=tp, pipeline_parallel=1, count=replicas, weight=1 / count)
                for tp, replicas in groups
            ],
            utilization=0.4,
        )

    stages = [stage("small", small, threshold if large else None, 1.0), stage("large", large, None, 0.4)]
    return Plan(
        plan_id=f"p-{number:012x}",
        cascade="pair",
        thresholds=[s.threshold for s in stages],
        stages=stages,
        ladder=[],
        quality=PlanQuality(mean=0.85, source="Prior"),
        latency=PlanLatency(p50_ms=3000, p90_ms=6000, p95_ms=9000, p99_ms=12000, source="by hand"),
        demand=PlanDemand(
            requests_per_second=rate,
            input_tokens_mean=500,
            output_tokens_mean=100,
            input_token_quantiles=[],
            output_token_quantiles=[],
            source="Manifest",
        ),
        frontier=[],
        solver=PlanSolver(
            status="Feasible", objective="EndToEnd", gap=0, elapsed_ms=0, threshold_vectors=1, version="by hand"
        ),
        scorer="logprob-mean",
    )


def phase(rate: float, *, name: str = "one", hardness: float = 0.0) -> Phase:
    return Phase(
        name=name,
        requests_per_second=rate,
        hardness=hardness,
        inputs=LengthDistribution(mean=500, p95=1200, longest=3000),
        outputs=LengthDistribution(mean=100, p95=250, longest=600),
    )


class Embedded:
    """The runtime of `pair`, its events and its traffic."""

    def __init__(self, directory: Path, scale: float, gpus: int) -> None:
        self.directory = directory
        self.clock = ScaledClock(scale, time.time())
        self.events = EventLog(self.clock, directory / "events.jsonl")
        cascade = pair(gpus)
        abilities = {ability.name: ability for ability in default_abilities(["small", "large"])}
        settings = SimulationSettings(abilities=abilities, clock=self.clock, load_speedup=4)
        starter = engine_starter(cascade, settings, kind="simulated")
        run = RunDirectory(directory)
        port = PortAllocator().take()
        self.runtime = EmbeddedRuntime(cascade, starter, run, self.clock, self.events, port=port)
        self.traffic: TrafficProcess | None = None

    async def start_traffic(self, rate: float, *, stream_share: float = 0.0) -> TrafficProcess:
        config = TrafficConfig(
            base_url=self.runtime.endpoint,
            model="pair",
            clock_scale=self.clock.scale,
            clock_epoch=self.clock.epoch,
            stream_share=stream_share,
        )
        self.traffic = TrafficProcess(config, self.directory)
        await self.traffic.start()
        await self.traffic.phase(phase(rate))
        return self.traffic


@contextlib.asynccontextmanager
async def embedded(directory: Path, *, scale: float = 20.0, gpus: int = 8) -> AsyncIterator[Embedded]:
    run = Embedded(directory, scale, gpus)
    try:
        yield run
    finally:
        if run.traffic is not None:
            await run.traffic.kill()
        await run.runtime.stop()


async def until(holds: Callable[[], bool | Awaitable[bool]], what: str, *, deadline_s: float = 60.0) -> None:
    """Wait until something holds; fail once the deadline has passed."""
    end = time.monotonic() + deadline_s
    while True:
        held = holds()
        if held if isinstance(held, bool) else await held:
            return
        assert time.monotonic() < end, f"not within {deadline_s:.0f} s: {what}"
        await asyncio.sleep(0.05)


def processes_of(directory: Path) -> list[int]:
    """Processes whose command line names a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if str(directory).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
