"""The time of scoring is part of what a plan predicts."""

from __future__ import annotations

from cascadia_solver.inputs import traffic_of
from cascadia_solver.planner import PlanningInputs, plan_cascade
from tests.support.planning import cascade, probit_table

TABLE = probit_table(1000, 7)


def test_it_is_on_the_path_of_answers_that_may_be_rejected() -> None:
    manifest = cascade(gpus=16, rate="4")
    slower = cascade(gpus=16, rate="4", routing={"scorer": {"latencyMs": 400}})
    assert traffic_of(PlanningInputs(slower, TABLE)).sample.scorer_seconds == 0.4
    fast, slow = (plan_cascade(PlanningInputs(each, TABLE)) for each in (manifest, slower))
    assert len(fast.live_stages) > 1
    assert slow.plan_id != fast.plan_id
    # Whoever the first stage answers waits once, who goes on twice; and no plan gets round it for nothing.
    assert fast.latency.p50_ms < slow.latency.p50_ms
    assert fast.latency.p95_ms + 100 < slow.latency.p95_ms < fast.latency.p95_ms + 1000
