"""What a plan keeps spares a new solve: another quality target or another load changes thresholds and no replica."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from cascadia_api.load import parse_cascade
from cascadia_api.plan import Plan
from cascadia_api.report import EDGES, Histogram
from cascadia_local.planning_messages import Job, Planned
from cascadia_local.planning_worker import run_job
from cascadia_operator.manifests.policy import read_policy
from cascadia_operator.planning import PlanningJob, PlanningOutcome, plan_job
from cascadia_solver import replanning
from cascadia_solver.calibration import CalibrationAnswer, calibration_line
from cascadia_solver.inputs import PlanningInputs, traffic_of
from cascadia_solver.observed import ObservedDemand
from cascadia_solver.planner import plan_cascade
from tests.support.memory_cluster import MemoryCluster
from tests.support.operator_cases import cascade_document
from tests.support.operator_in_memory import MODELS, HandedOutPlans, Operator, nodes
from tests.support.planning import probit_table

NAMES = [model["name"] for model in MODELS]
TABLE = probit_table(600, 7)
# Another placement has to promise a lot: what is asked here is whether thresholds alone are planned.
PATIENT = {"minImprovementPercent": 90}
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("a higher floor", {"objective": {"minQuality": "0.84"}}),
    ("a lower floor", {"objective": {"minQuality": "0.80"}}),
    ("a lower floor under overload", {"objective": {"minQuality": "0.82", "minQualityOverloaded": "0.78"}}),
    ("a still lower one", {"objective": {"minQuality": "0.82", "minQualityOverloaded": "0.74"}}),
    ("more load", {"rate": "6.4"}),
    ("less load", {"rate": "5.0"}),
]


def document(objective: dict[str, str] | None = None, rate: str = "6", **fields: Any) -> dict[str, Any]:
    made = cascade_document(MODELS, objective=objective or {"minQuality": "0.82"}, replanning=PATIENT, **fields)
    made["spec"]["workload"]["requestsPerSecond"] = rate
    return made


def inputs(**change: Any) -> PlanningInputs:
    return PlanningInputs(parse_cascade(document(**change)), TABLE)


@cache
def standing() -> Plan:
    return plan_cascade(inputs())


def kept(plan: Plan, change: dict[str, Any]) -> None:
    """Hold a plan of thresholds alone against the plan whose replicas it has."""
    assert plan.replicas_of is not None
    assert plan.replicas_of.plan_id == standing().plan_id
    assert [stage.replicas for stage in plan.stages] == [stage.replicas for stage in standing().stages]
    objective = change.get("objective", {"minQuality": "0.82"})
    floor, least = (
        float(objective.get(field, objective["minQuality"])) for field in ("minQuality", "minQualityOverloaded")
    )
    assert plan.quality.lower_bound is not None
    assert plan.quality.lower_bound >= floor
    assert plan.thresholds in [rung.thresholds for rung in plan.ladder]
    for rung in plan.ladder:
        assert (rung.quality_lower_bound or 0.0) >= floor or floor > float(rung.quality_mean) >= least
    # The next change is judged by the same frontier.
    assert {p.p95_ms for p in standing().frontier if not p.chosen} <= {p.p95_ms for p in plan.frontier}


def seen(rate: float) -> ObservedDemand:
    """What routers report of the traffic that the plan is for, at another rate."""
    sample = traffic_of(inputs()).sample

    def histogram(values: np.ndarray, edges: str) -> Histogram:
        inner = np.searchsorted(EDGES[edges], values, side="left")
        counts = np.bincount(inner, minlength=len(EDGES[edges]) + 1)
        return Histogram(edges=edges, counts=counts.tolist(), sum=float(values.sum()))  # type: ignore[arg-type]

    return ObservedDemand(
        requests_per_second=rate,
        stage=NAMES[0],
        input_tokens=histogram(sample.input_tokens, "tokens"),
        output_tokens=histogram(sample.output_tokens[:, 0], "tokens"),
        scores=histogram(sample.scores[:, 0], "score"),
    )


@pytest.fixture
def no_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    standing()

    def solve(*_: Any, **__: Any) -> Plan:
        raise AssertionError("a new solve")

    monkeypatch.setattr(replanning, "plan_cascade", solve)
    monkeypatch.setattr("cascadia_local.planning_worker.plan_cascade", solve)


@pytest.mark.usefixtures("no_solve")
@pytest.mark.parametrize("change", [change for _, change in CHANGES], ids=[name for name, _ in CHANGES])
def test_the_planning_process_of_up(change: dict[str, Any]) -> None:
    for replicas in ("Keep", "KeepIfEnough"):
        given = inputs(**change)
        if "rate" in change:
            given = replace(inputs(), observed=seen(float(change["rate"])))
        answer = run_job(Job(given, 60.0, in_force=standing(), replicas=replicas), lambda _: None)
        assert isinstance(answer, Planned), answer
        kept(answer.plan, change)
        assert answer.in_force is not None


@pytest.mark.usefixtures("no_solve")
@pytest.mark.parametrize("change", [change for _, change in CHANGES], ids=[name for name, _ in CHANGES])
def test_the_planning_process_of_the_operator(change: dict[str, Any]) -> None:
    outcome = plan_job(job(document(**change), in_force=standing().for_json()))
    assert outcome.plan is not None, outcome.failure
    kept(Plan.model_validate(outcome.plan), change)


class RealPlans(HandedOutPlans):
    """Planning as the operator's planning process does it, here."""

    async def run(self, job: PlanningJob) -> PlanningOutcome:
        self.jobs.append(job)
        return plan_job(job)


async def test_the_operator_writes_the_policy_and_no_replica() -> None:
    cluster = MemoryCluster()
    nodes(cluster, 4)
    data = {"set.jsonl": "\n".join(lines())}
    cluster.put({"kind": "ConfigMap", "metadata": {"name": "set", "namespace": "serving"}, "data": data})
    calibration = {"configMapRef": {"name": "set"}}
    cluster.put(document(calibration=calibration))
    operator = Operator(cluster, RealPlans())
    await operator.settle()
    replicas = operator.replicas()
    first = operator.status["plan"]["id"]
    seen = {first}
    for name, change in CHANGES:
        cluster.put(document(calibration=calibration, **change))
        await operator.settle()
        assert operator.condition("Ready") == ("True", "Serving"), name
        assert operator.replicas() == replicas, name
        assert "thresholds alone, no replica moves" in operator.status["lastReplan"]["reason"]
        plan = Plan.model_validate(
            cluster.objects["CascadePlan", "serving", operator.status["plan"]["name"]]["spec"]["plan"]
        )
        kept(plan, change)
        seen.add(plan.plan_id)
        policy = read_policy(cluster.objects["ConfigMap", "serving", "chat-policy"])
        assert policy is not None
        live = [index for index, stage in enumerate(plan.stages) if stage.gpus]
        assert policy.ladder == [[rung.thresholds[index] for index in live] for rung in plan.ladder]
        assert [stage.threshold for stage in policy.stages] == [plan.thresholds[index] for index in live]
    assert len(seen) == 1 + len(CHANGES), "every change has a plan of its own"


def job(cascade: dict[str, Any], **fields: Any) -> PlanningJob:
    return PlanningJob(cascade, lines(), available_gpus={"h100": 32}, deadline_seconds=60.0, **fields)


@cache
def lines() -> tuple[str, ...]:
    """The calibration set as the operator reads it."""
    scores, quality, tokens = TABLE.scores.tolist(), TABLE.quality.tolist(), TABLE.output_tokens.tolist()
    return tuple(
        calibration_line(
            identifier,
            float(TABLE.input_tokens[r]),
            {
                name: CalibrationAnswer({TABLE.scorer: scores[r][m]}, quality[r][m], tokens[r][m])
                for m, name in enumerate(NAMES)
            },
        ).decode()
        for r, identifier in enumerate(TABLE.ids)
    )
