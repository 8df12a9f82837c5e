"""The vectorised replay against a loop over requests and thresholds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.errors import InputError
from cascadia_api.policy import Endpoint, RouterPolicy, StagePolicy
from cascadia_router.completion_body import CompletionRequest
from cascadia_router.policy_store import Cascade
from cascadia_router.scorers.log_prob import LogProb
from cascadia_solver.replay import Replay, ThresholdGrid, exit_stages, stage_loads, threshold_grids
from cascadia_solver.workload import RequestSample
from tests.support.planning import probit_table


def routers_of(stages: tuple[int, ...], able: np.ndarray) -> Cascade:
    """The routers' own view of a cascade in which bit m of a request's needs is what model m takes to serve it."""
    words = ("tools", "images", "audio", "json-schema")
    policy = RouterPolicy(
        cascade="chat",
        policy_revision=1,
        plan_id="p",
        stages=[
            StagePolicy(name=f"m{m}", served_model_name="m", threshold=None if m == stages[-1] else 0.5,
                        endpoints=[Endpoint(replica=f"r{m}", address="127.0.0.1:1")],
                        context_window=10 if able[m] else 9, capabilities=list(words[:3]))
            for m in stages
        ],
    )  # fmt: skip
    return Cascade(policy, LogProb(policy.scorer.id, "Mean"))


def walk(
    stages: tuple[int, ...], thresholds: tuple[float, ...], scores: np.ndarray, able: np.ndarray
) -> tuple[list[int], int]:
    """Stages that serve one request and the model that answers or refuses it, by the routers' `able_from`."""
    ten_tokens = b'{"model":"chat","messages":[]}'.ljust(40)
    request = CompletionRequest(b"/v1/chat/completions", ten_tokens)
    cascade, visited, place = routers_of(stages, able), [], 0
    while True:
        place = cascade.able_from(place, len(stages), request)[0].index
        model = stages[place]
        if able[model]:
            visited.append(model)
        if model == stages[-1] or scores[model] >= thresholds[place]:
            return visited, model
        place += 1


LEVELS = st.sampled_from([-np.inf, 0.1, 0.3, 0.5, 0.7, 1.5])
grids = st.integers(1, 4).flatmap(
    lambda models: st.tuples(
        st.just(models),
        st.sets(st.integers(0, models - 1), min_size=1).map(lambda s: tuple(sorted(s))),
        st.lists(
            st.lists(LEVELS, min_size=1, max_size=3, unique=True).map(sorted), min_size=models - 1, max_size=models - 1
        ),
        st.integers(0, 10_000),
    )
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(case=grids)
def test_replay_equals_a_loop(case: tuple[int, tuple[int, ...], list[list[float]], int]) -> None:
    models, stages, levels, seed = case
    random = np.random.default_rng(seed)
    scores = random.choice([0.0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.9], size=(25, models))
    able = random.random((25, models)) < (0.7 if seed % 2 else 1.0)
    values, weights = random.random((25, models)), random.random(25)
    grid = ThresholdGrid(stages, tuple(np.array(levels[k]) for k in range(len(stages) - 1)))
    replay = Replay(grid, scores, None if able.all() else able)
    reach, worth = replay.reach(weights), replay.at_exit(values)
    batch = replay.at_exit(np.stack([values, 2 * values]))
    assert len(grid) == len(reach) == len(worth)
    for index in range(len(grid)):
        thresholds = grid.vector(index)
        paths = [walk(stages, thresholds, row, can) for row, can in zip(scores, able, strict=True)]
        worths = [values[r, answered] * able[r, answered] for r, (_, answered) in enumerate(paths)]
        assert worth[index] == pytest.approx(sum(worths))
        assert batch[:, index] == pytest.approx([worth[index], 2 * worth[index]])
        for j, model in enumerate(stages):
            share = sum(weights[r] for r, (visited, _) in enumerate(paths) if model in visited) / weights.sum()
            assert reach[index, j] == pytest.approx(share)
        assert exit_stages(stages, thresholds, scores, able).tolist() == [answered for _, answered in paths]


def test_vectors_are_found_again() -> None:
    grid = ThresholdGrid((0, 1, 2), (np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6])))
    assert [grid.vector(k) for k in range(len(grid))] == list(product([0.1, 0.2, 0.3], [0.5, 0.6]))
    assert [grid.nearest(grid.vector(k)) for k in range(len(grid))] == list(range(6))


def test_three_models_are_searched_over_a_thousand_vectors() -> None:
    grids = threshold_grids(probit_table(500, 0), candidates=range(3), forced=(), max_escalations=None)
    assert sorted(grid.stages for grid in grids) == [(0,), (0, 1), (0, 1, 2), (0, 2), (1,), (1, 2), (2,)]
    assert len(next(grid for grid in grids if len(grid.stages) == 3)) >= 1000
    for grid in grids:
        assert all((np.diff(levels) > 0).all() for levels in grid.levels)


def test_thresholds_survive_six_digits() -> None:
    for grid in threshold_grids(probit_table(500, 0), candidates=range(3), forced=(), max_escalations=None):
        for levels in grid.levels:
            assert [float(f"{level:.6g}") for level in levels] == levels.tolist()


def test_escalations_limit_the_stages() -> None:
    table = probit_table(200, 0)
    grids = threshold_grids(table, candidates=range(3), forced=(), max_escalations=1)
    assert max(len(grid.stages) for grid in grids) == 2
    assert {grid.stages for grid in threshold_grids(table, candidates=range(3), forced=(), max_escalations=0)} == {
        (0,),
        (1,),
        (2,),
    }


def test_forced_stages_are_in_every_choice_and_may_be_passed_by() -> None:
    table = probit_table(200, 0)
    grids = threshold_grids(table, candidates=range(3), forced={1}, max_escalations=None)
    assert all(1 in grid.stages for grid in grids)
    full = next(grid for grid in grids if grid.stages == (0, 1, 2))
    assert full.levels[0][0] == -np.inf
    assert full.levels[1][-1] > table.scores[:, 1].max()
    with pytest.raises(InputError, match="3 models have minReplicas above 0"):
        threshold_grids(table, candidates=range(3), forced={0, 1, 2}, max_escalations=1)


@pytest.mark.parametrize("gate", [None, 40])
@pytest.mark.parametrize("all_able", [True, False])
def test_loads_of_a_sample_are_those_of_its_requests_one_by_one(gate: int | None, *, all_able: bool) -> None:
    table = probit_table(120, 3)
    random = np.random.default_rng(4)
    row = random.integers(0, 100, 700)
    outputs = np.rint(random.exponential(100, (700, 3)) + 1)
    able = None if all_able else (random.random((700, 3)) < 0.9) | np.array([False, False, True])
    sample = RequestSample(
        requests_per_second=2.0,
        arrivals=np.arange(700) / 2,
        input_tokens=np.ones(700),
        output_tokens=outputs,
        scores=table.scores[row],
        quality=table.quality[row],
        row=row,
        able=able,
        gate_tokens=gate,
    )
    for grid in threshold_grids(table, candidates=range(3), forced=(), max_escalations=None):
        loads = stage_loads(grid, sample)
        replay = Replay(grid, sample.scores, able)
        assert loads.reach == pytest.approx(replay.reach(np.ones(700)))
        assert loads.passed_by == pytest.approx(replay.passed_by())
        for place, model in enumerate(grid.stages):
            tokens = replay.generated(place, np.ascontiguousarray(outputs[:, model]), gate)
            assert loads.tokens[:, place] == pytest.approx(tokens / 700)
