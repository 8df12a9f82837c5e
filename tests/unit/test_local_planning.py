"""What the planning process answers."""

from __future__ import annotations

from cascadia_local.planning_messages import Infeasible, Job, OutOfTime, Planned, Progress
from cascadia_local.planning_worker import run_job
from cascadia_solver.inputs import PlanningInputs
from tests.support.planning import cascade, probit_table

TABLE = probit_table(400, 7)


def job(milliseconds: int, deadline: float) -> Job:
    target = {"metric": "EndToEnd", "percentile": 95, "milliseconds": milliseconds}
    objective = {"minQuality": "0.75", "minimize": "Cost", "targets": [target]}
    return Job(PlanningInputs(cascade(rate="6", objective=objective), TABLE), deadline)


def test_a_plan_no_plan_and_no_time_are_three_answers() -> None:
    told: list[Progress] = []
    planned = run_job(job(9000, 60.0), told.append)
    assert isinstance(planned, Planned)
    assert planned.plan.latency.p95_ms <= 9000
    assert told[-1].share == 1.0
    none = run_job(job(50, 60.0), told.append)
    assert isinstance(none, Infeasible)
    assert none.reason == "LatencyOutOfReach"
    late = run_job(job(50, 0.0), told.append)
    assert isinstance(late, OutOfTime)
    assert "within the latency targets" in late.message
