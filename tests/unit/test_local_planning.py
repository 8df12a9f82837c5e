"""What the planning process answers."""

from __future__ import annotations

import numpy as np
import pytest

from cascadia_api.load import load_manifest
from cascadia_local.expectation import expect
from cascadia_local.planning_messages import Infeasible, Job, OutOfTime, Planned, Progress
from cascadia_local.planning_worker import run_job
from cascadia_solver.inputs import PlanningInputs, traffic_of
from cascadia_solver.standing import simulate_plan
from tests.support.embedded import MANIFEST, plan_of
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


def test_the_plan_in_force_is_expected_to_do_what_it_does_at_work() -> None:
    """At 1,000 requests/s the sample is over before engines have filled: idle ones would look a tenth better."""

    def at(scale: int) -> tuple[dict[int, float], np.ndarray, np.ndarray]:
        manifest = MANIFEST.replace("maxGpus: 8", "maxGpus: 400").replace('"3"', f'"{100 * scale}"')
        cascade = load_manifest(manifest, "pair.yaml").cascade
        inputs = PlanningInputs(cascade)
        traffic = traffic_of(inputs)
        plan = plan_of([(1, 4 * scale)], [(4, 5 * scale)], rate=100.0 * scale)
        times, _ = simulate_plan(cascade.spec, traffic.facts, plan, traffic.sample, inputs.sources)
        expected = expect(cascade, plan, traffic.sample, inputs.sources)
        assert not expected.saturated
        return expected.end_to_end_ms, 1000 * times.end_to_end, traffic.sample.arrivals

    _, slowly, arrivals = at(1)
    warm = slowly[(arrivals > 15) & (arrivals < arrivals[-1] - 15)]
    expected, from_idle, _ = at(10)
    for percent, figure in expected.items():
        assert figure == pytest.approx(np.percentile(warm, percent), rel=0.06)
    assert np.percentile(from_idle, 95) < 0.9 * expected[95]
