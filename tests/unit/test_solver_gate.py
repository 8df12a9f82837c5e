"""What a gate means to the planner: rejected answers stop at its tokens, accepted ones begin to be seen there."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cascadia_solver.inputs import PlanningInputs, traffic_of
from cascadia_solver.path_estimate import path_latency
from cascadia_solver.planner import plan_cascade
from cascadia_solver.replay import Replay, exit_stages, threshold_grids
from cascadia_solver.simulation import simulate_cascade
from tests.support.planning import cascade, probit_table
from tests.unit.test_solver_perf_cascade import ONE_LARGE, ONE_SMALL, load

GATED = {"streaming": {"mode": "Gate", "gateTokens": 32}}


def test_generated_tokens_are_those_of_a_loop_over_requests() -> None:
    table = probit_table(300, 1)
    able = np.random.default_rng(2).random(table.scores.shape) < 0.9
    able[:, -1] = True
    for grid in threshold_grids(table, candidates=range(3), forced=[], max_escalations=None):
        replay = Replay(grid, table.scores, able)
        for vector in range(0, len(grid), max(1, len(grid) // 7)):
            exits = exit_stages(grid.stages, grid.vector(vector), table.scores, able)
            for place, model in enumerate(grid.stages):
                answers = np.ascontiguousarray(table.output_tokens[:, model])
                served = (exits >= model) & able[:, model]
                rejected = (exits > model) & (place + 1 < len(grid.stages))
                expected = np.where(rejected, np.minimum(answers, 32), answers)[served].sum()
                assert replay.generated(place, answers, 32)[vector] == pytest.approx(expected)
                assert replay.generated(place, answers, None)[vector] == pytest.approx(answers[served].sum())


def test_a_simulated_gate_decides_at_its_tokens() -> None:
    arrivals, inputs, outputs = load(400, 3.0)
    both = np.stack([outputs, outputs], axis=1)
    exits = (np.arange(400) % 3 == 0).astype(int)
    stages = [ONE_SMALL, ONE_LARGE]
    held = simulate_cascade(stages, arrivals, inputs, both, exits)
    gated = simulate_cascade(stages, arrivals, inputs, both, exits, gate_tokens=32)
    accepted = exits == 0
    long = outputs > 32
    assert np.all(gated.time_to_first_token[accepted & long] < gated.end_to_end[accepted & long])
    assert np.median(gated.time_to_first_token[accepted]) < 0.5 * np.median(held.time_to_first_token[accepted])
    assert np.median(gated.stage_service[0][~accepted]) < 0.5 * np.median(held.stage_service[0][~accepted])
    assert gated.utilisation[0] < held.utilisation[0]
    late = simulate_cascade(stages, arrivals, inputs, both, exits, gate_tokens=10_000)
    assert np.array_equal(late.end_to_end, held.end_to_end), "a gate behind every answer's end is no gate"
    assert late.time_to_first_token == pytest.approx(held.time_to_first_token)


def test_the_closed_form_spares_the_rest_of_rejected_answers() -> None:
    scores = np.array([[0.2, 1.0], [0.9, 1.0]])
    outputs = np.array([[100.0, 10.0], [100.0, 10.0]])
    parts = [np.array([[0.0, 0.0, 0.01]]), np.array([[0.0, 0.0, 0.1]])]
    for gate, rejected in ((None, 1.0), (32, 0.32), (500, 1.0)):
        times = path_latency(
            (0, 1), [np.array([0.5])], parts, np.array([1.0, 1.0]), outputs, scores, None, gate
        )  # fmt: skip
        assert times[0] == pytest.approx([rejected + 1.0, 1.0])


def test_a_plan_with_a_gate_needs_no_more_and_waits_less() -> None:
    """The same thresholds cost less work at the stages that reject."""
    models = ("small", "medium")
    table = probit_table(400, 3, models=models, accuracies=(0.72, 0.86))

    def inputs(**routing: Any) -> PlanningInputs:
        manifest = cascade(models=models, gpus=8, objective={"minQuality": "0.75"}, routing=routing)
        return PlanningInputs(cascade=manifest, calibration=replace(table, scorer=manifest.spec.routing.scorer_id))

    buffered, gated = inputs(), inputs(**GATED)
    assert traffic_of(gated).sample.gate_tokens == 32
    whole, short = plan_cascade(buffered), plan_cascade(gated)
    assert short.scorer == "logprob-mean@32"
    assert short.plan_id != whole.plan_id
    assert short.latency.p95_ms <= whole.latency.p95_ms * 1.02
