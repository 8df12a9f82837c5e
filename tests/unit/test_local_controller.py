"""The slow loop's decisions, with reports and a planner made by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
from msgspec.structs import replace

from cascadia_api.clock import ScaledClock
from cascadia_api.errors import InfeasibleError, Shortfall
from cascadia_api.plan import KeptReplicas, Plan
from cascadia_api.report import (
    LATENCY_EDGES_MS,
    SCORE_EDGES,
    TOKEN_EDGES,
    CalibrationSample,
    Histogram,
    NextAnswer,
    StageReport,
    WorkloadReport,
)
from cascadia_local.controller import Controller
from cascadia_local.decision import decide
from cascadia_local.events import EventLog
from cascadia_local.planning_messages import Expectation, Job, Planned
from cascadia_solver.inputs import PlanningInputs
from tests.support.embedded import pair, plan_of


class FakeClock(ScaledClock):
    """Time that stands still until it is moved."""

    moment: ClassVar[float] = 1000.0

    def monotonic(self) -> float:
        return self.moment

    def now(self) -> float:
        return self.moment


def histogram(edges: str, values: Sequence[float]) -> Histogram:
    bounds = {"tokens": TOKEN_EDGES, "latencyMs": LATENCY_EDGES_MS, "score": SCORE_EDGES}[edges]
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[sum(bound < value for bound in bounds)] += 1
    return Histogram(edges=edges, counts=counts, sum=float(sum(values)))  # type: ignore[arg-type]


def report(rate: float, *, seconds: float = 60.0) -> WorkloadReport:
    count = int(rate * seconds)
    stage = StageReport(
        stage="small",
        requests=count,
        input_tokens=histogram("tokens", [500.0] * count),
        output_tokens=histogram("tokens", [100.0] * count),
        service_ms=histogram("latencyMs", [1000.0] * count),
        scores=histogram("score", [0.9] * count),
    )
    empty = histogram("latencyMs", [])
    return WorkloadReport(
        plan_id="p",
        policy_revision=1,
        window_seconds=seconds,
        window_end=0.0,
        arrivals=count,
        end_to_end_ms=empty,
        time_to_first_token_ms=empty,
        stage=stage,
    )


@dataclass
class World:
    """A runtime and a planner."""

    plan: Plan
    rate: float = 0.0
    new: Plan | Exception | None = None
    expected: Expectation = field(
        default_factory=lambda: Expectation(dict.fromkeys((50, 90, 95, 99), 60_000.0), 0.85, {}, ("small",))
    )
    jobs: list[Job] = field(default_factory=list)
    applied: list[Plan] = field(default_factory=list)
    samples: list[CalibrationSample] = field(default_factory=list)

    async def reports(self, window_seconds: float) -> list[WorkloadReport]:
        made = report(self.rate, seconds=window_seconds)
        return [replace(made, plan_id=self.plan.plan_id, samples=self.samples)]

    async def apply(self, plan: Plan) -> None:
        self.applied.append(plan)
        self.plan = plan

    async def run(self, job: Job) -> Planned:
        self.jobs.append(job)
        if isinstance(self.new, Exception):
            raise self.new
        assert self.new is not None
        return Planned(self.new, self.expected)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    monkeypatch.setattr(FakeClock, "moment", 1000.0)  # undone afterwards
    return FakeClock()


def setup(world: World, clock: FakeClock, tmp_path: Path, **replanning: object) -> tuple[Controller, EventLog]:
    cascade = pair()
    settings = cascade.spec.replanning.model_copy(update={"cooldown_seconds": 0} | replanning)
    cascade = cascade.model_copy(update={"spec": cascade.spec.model_copy(update={"replanning": settings})})
    events = EventLog(clock, tmp_path / "events.jsonl")
    inputs = PlanningInputs(cascade=cascade)
    return Controller(world, inputs, world, clock, events), events  # type: ignore[arg-type]


BEFORE = plan_of([(1, 1)], [(4, 1)], number=1, rate=10.0)
AFTER = plan_of([(1, 2)], [(4, 1)], number=2, rate=20.0)


async def test_no_traffic_and_traffic_as_planned_change_nothing(clock: FakeClock, tmp_path: Path) -> None:
    world = World(BEFORE)
    controller, events = setup(world, clock, tmp_path)
    for rate in (0.0, 0.0, 4.0, 10.0, 10.5, 0.0, 3.0):  # 4 and 3: windows in which traffic began
        world.rate = rate
        await controller._look()
    assert (events.events, world.jobs) == ([], [])


async def test_drift_counts_once_confirmed_and_the_new_plan_is_for_what_was_seen(
    clock: FakeClock, tmp_path: Path
) -> None:
    world = World(BEFORE, rate=10.0, new=AFTER)
    controller, events = setup(world, clock, tmp_path)
    await controller._look()
    world.rate = 20.0
    await controller._look()
    assert world.jobs == []
    world.rate = 10.0
    await controller._look()
    world.rate = 20.0
    await controller._look()
    assert world.jobs == [], "two looks in a row, not two in all"
    await controller._look()
    (job,) = world.jobs
    assert job.in_force is BEFORE
    assert job.inputs.observed is not None
    assert job.inputs.observed.requests_per_second == pytest.approx(20.0)
    assert job.inputs.observed.scores.count() == 1200
    assert world.applied == [AFTER]
    assert [event.kind for event in events.events] == [
        "Drift",
        "Drift",
        "Drift",
        "Replan",
        "Replan",
        "Transition",
        "Transition",
    ]
    confirmed = events.events[2]
    assert "confirmed" in confirmed.text
    assert confirmed.details["tests"]["ArrivalRate"]["pValue"] < confirmed.details["tests"]["ArrivalRate"]["level"]  # type: ignore[index]
    (replan,) = controller.replans
    assert (replan.before, replan.after, replan.decision.verdict) == (BEFORE, AFTER, "Applied")


async def test_the_cooldown_is_waited_for_and_said_once(clock: FakeClock, tmp_path: Path) -> None:
    world = World(BEFORE, rate=20.0, new=AFTER)
    controller, events = setup(world, clock, tmp_path, cooldown_seconds=600)
    world.new = InfeasibleError("Overloaded", "no thresholds do")
    for _ in range(5):
        await controller._look()
    assert [job.replicas for job in world.jobs] == ["Keep"]
    assert world.applied == []
    assert sum("cooldown" in event.text for event in events.events) == 1
    FakeClock.moment += 601
    world.new = AFTER
    await controller._look()
    assert world.applied == [AFTER]


async def test_thresholds_change_during_the_cooldown_and_the_placement_after_it(
    clock: FakeClock, tmp_path: Path
) -> None:
    kept = KeptReplicas(plan_id=BEFORE.plan_id, requests_per_second=10.0)
    stopgap = plan_of([(1, 1)], [(4, 1)], number=3, rate=20.0).model_copy(
        update={"replicas_of": kept, "thresholds": [0.5, None]}
    )
    world = World(BEFORE, rate=20.0, new=stopgap)
    controller, _ = setup(world, clock, tmp_path, cooldown_seconds=600)
    for _ in range(5):
        await controller._look()
    assert world.applied == [stopgap]
    assert [job.replicas for job in world.jobs] == ["Keep"]
    world.new = AFTER
    FakeClock.moment += 601  # the thresholds did not start the cooldown anew
    await controller._look()
    assert world.applied == [stopgap, AFTER]
    assert [job.replicas for job in world.jobs] == ["Keep", "KeepIfEnough"]
    FakeClock.moment += 601
    await controller._look()
    assert len(world.jobs) == 2


async def test_advisory_proposes(clock: FakeClock, tmp_path: Path) -> None:
    world = World(BEFORE, rate=20.0, new=AFTER)
    controller, _ = setup(world, clock, tmp_path, mode="Advisory")
    for _ in range(3):
        await controller._look()
    assert world.applied == []
    assert controller.replans[0].decision.verdict == "Proposed"


async def test_disabled_never_looks(clock: FakeClock, tmp_path: Path) -> None:
    controller, _ = setup(World(BEFORE, rate=20.0), clock, tmp_path, mode="Disabled")
    await controller.run()  # returns


async def test_what_cannot_be_planned_is_rejected_with_numbers(clock: FakeClock, tmp_path: Path) -> None:
    error = InfeasibleError("InsufficientGPUs", "too much", shortfalls=[Shortfall("GPUs of pool h100", 12, 8)])
    world = World(BEFORE, rate=90.0, new=error)
    controller, events = setup(world, clock, tmp_path)
    for _ in range(3):
        await controller._look()
    assert world.applied == []
    assert events.events[-1].details["decision"] == "Rejected"
    assert "12 needed, 8 there" in events.events[-1].text


def expectation(p95: float, *, quality: float = 0.86, saturated: tuple[str, ...] = ()) -> Expectation:
    return Expectation({50: p95 / 3, 90: p95 / 1.2, 95: p95, 99: p95 * 1.3}, quality, {}, saturated)


def cost(plan: Plan, value: float) -> Plan:
    return plan.model_copy(update={"cost_per_hour": value})


def test_a_plan_that_changes_nothing_is_skipped() -> None:
    same = BEFORE.model_copy(update={"plan_id": "p-00000000000f"})
    assert decide(pair().spec, BEFORE, expectation(9000), same).verdict == "Skipped"


@pytest.mark.parametrize(
    ("expected", "verdict", "words"),
    [
        (expectation(9500), "Skipped", "p95 9.0 s instead of 9.5 s"),
        (expectation(10_100), "Applied", "p95 9.0 s instead of 10.1 s"),
        (expectation(5000, saturated=("small",)), "Applied", "not carry the load of small"),
        (expectation(5000, quality=0.79), "Applied", "quality of 0.790, below minQuality 0.8"),
    ],
)
def test_a_plan_is_applied_if_better_by_enough_or_needed(expected: Expectation, verdict: str, words: str) -> None:
    decision = decide(pair().spec, BEFORE, expected, AFTER)
    assert decision.verdict == verdict
    assert words in decision.reason


def test_the_floor_is_held_by_the_bound_where_there_is_one() -> None:
    quality = AFTER.quality.model_copy(update={"mean": 0.84, "lower_bound": 0.81, "source": "Calibration"})
    bounded = AFTER.model_copy(update={"quality": quality})
    assert decide(pair().spec, BEFORE, expectation(9000, quality=0.82), bounded).verdict == "Applied"
    assert decide(pair().spec, BEFORE, expectation(9000, quality=0.84), bounded).verdict == "Skipped"


def test_cost_counts_where_cost_is_minimised_and_targets_come_first() -> None:
    spec = pair().spec
    target = {"metric": "EndToEnd", "percentile": 95, "milliseconds": 10_000}
    objective = type(spec.objective).model_validate({"minQuality": "0.8", "minimize": "Cost", "targets": [target]})
    spec = spec.model_copy(update={"objective": objective})
    before, cheaper, dearer = cost(BEFORE, 20.0), cost(AFTER, 17.0), cost(AFTER, 30.0)
    assert decide(spec, before, expectation(9000), cheaper).verdict == "Applied"
    assert decide(spec, before, expectation(9000), dearer).verdict == "Skipped"
    decision = decide(spec, before, expectation(12_000), dearer)
    assert decision.verdict == "Applied"
    assert "p95 of 12.0 s, above 10 s" in decision.reason


def compared(first: int, count: int, *, agreement: float, probability: float) -> list[CalibrationSample]:
    return [
        CalibrationSample(
            request_id=str(number), stage="small", score=0.9, output_tokens=1, input_tokens=1,
            inclusion_probability=probability, next=NextAnswer(stage="large", agreement=agreement),
        )
        for number in range(first, first + count)
    ]  # fmt: skip


async def test_agreement_is_told_weighted_and_as_it_grows(clock: FakeClock, tmp_path: Path) -> None:
    world = World(BEFORE, rate=10.0)
    controller, events = setup(world, clock, tmp_path)

    async def told() -> list[str]:
        await controller._look()
        return [event.text for event in events.events if event.kind == "Shadow"]

    world.samples = compared(0, 20, agreement=1.0, probability=0.1)
    assert await told() == [], "too few"
    world.samples += compared(20, 20, agreement=0.0, probability=0.3)  # three times as likely to be here
    (text,) = await told()
    assert text.startswith("accepted answers of small agree with large's by 0.75 ± 0.0")
    assert text.endswith("(token F1, 40 compared)")
    assert len(await told()) == 1, "nothing new"
    world.samples = compared(40, 40, agreement=1.0, probability=0.1)
    assert len(await told()) == 2, "twice as many"
    world.plan = AFTER
    assert len(await told()) == 3, "another plan's are counted anew"
