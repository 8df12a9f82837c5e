"""Corrections learnt from engines' own counters: a slower engine is found, at any load, and only that."""

from __future__ import annotations

import numpy as np
import pytest

from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.engine_window import EngineCounters, EngineWindow, learn, read_counters, slowdown, window_between
from cascadia_solver.live_correction import CorrectionKey, LiveCorrections, LiveSource, scaled
from cascadia_solver.prediction import predict
from cascadia_solver.roofline import Roofline, Shape, step_model
from cascadia_solver.simulation import simulate_replica
from cascadia_solver.steptime import StepModel
from cascadia_solver.workload import poisson_arrivals

H100, L8 = gpu_facts("H100-SXM-80GB"), model_facts("meta-llama/Llama-3.1-8B-Instruct")
ONE = Shape(1, 1)
STEP = step_model(L8, H100, ONE, "bf16")
KEY = CorrectionKey(L8.name, H100.name, str(ONE), "sglang 0.5.9")


def slowed(prefill: float, decode: float) -> StepModel:
    """The step model of an engine whose prompts and decoding take so many times longer."""
    return scaled(STEP, prefill, decode)


def counters_of(step: StepModel, rate: float, seed: int, requests: int = 1500) -> tuple[EngineCounters, EngineCounters]:
    """An engine's counters before and after some traffic of mixed lengths."""
    random = np.random.default_rng(seed)
    inputs = np.rint(np.exp(random.normal(6.5, 0.6, requests)))
    outputs = np.rint(np.exp(random.normal(5.0, 0.5, requests)))
    arrivals = poisson_arrivals(rate, requests, random)
    first, finish = simulate_replica(step, arrivals, inputs, outputs)
    between = (finish - first)[outputs > 1]
    before = EngineCounters(100.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0)
    change = (
        float(arrivals[-1]), inputs.sum(), outputs.sum(), (first - arrivals).sum(),
        float(requests), between.sum(), (outputs[outputs > 1] - 1).sum(),
    )  # fmt: skip
    return before, EngineCounters(*(float(old + new) for old, new in zip(before, change, strict=True)))


def window_of(step: StepModel, rate: float) -> EngineWindow:
    window = window_between(*counters_of(step, rate, seed=3))
    assert window is not None
    return window


@pytest.mark.parametrize(("prefill", "decode"), [(1.0, 1.0), (1.5, 1.5), (1.0, 2.0), (1.6, 0.8), (0.7, 0.7)])
@pytest.mark.parametrize("rate", [0.5, 3.0, 10.0])
def test_a_slower_engine_is_found_whatever_its_load(prefill: float, decode: float, rate: float) -> None:
    found = slowdown(STEP, window_of(slowed(prefill, decode), rate))
    assert found is not None
    assert found.decode == pytest.approx(decode, rel=0.05)
    assert found.prefill == pytest.approx(prefill, rel=0.11)


def test_a_prediction_moves_to_what_a_slowed_engine_does_and_outliers_do_not_move_it() -> None:
    truth = slowed(1.5, 1.5)
    corrections = LiveCorrections()
    for look in range(40):
        window = window_between(*counters_of(slowed(9.0, 9.0) if look % 10 == 3 else truth, 4.0, look, 60))
        assert window is not None
        corrections = learn(corrections, KEY, STEP, {"small-1": window})
    source = LiveSource(Roofline(), LiveCorrections.from_json(corrections.to_json()), KEY.engine_version)
    lengths = {"inputs": 700, "outputs": 150, "rate": 4.0}
    plain, live = (predict(L8, H100, ONE, "bf16", source=s, **lengths) for s in (Roofline(), source))  # type: ignore[arg-type]

    class Truth(Roofline):
        def step_model(self, *_: object, **__: object) -> StepModel:  # type: ignore[override]
            return truth

    true = predict(L8, H100, ONE, "bf16", source=Truth(), **lengths)  # type: ignore[arg-type]
    assert plain.e2e is not None and live.e2e is not None and true.e2e is not None  # noqa: PT018 - narrowing
    assert live.e2e.p95_ms == pytest.approx(true.e2e.p95_ms, rel=0.08)
    assert live.e2e.p95_ms > 1.3 * plain.e2e.p95_ms
    assert (live.source, live.extrapolates) == ("live correction of roofline", ())


def test_windows_that_say_nothing_are_left_out() -> None:
    before, after = counters_of(STEP, 4.0, seed=1)
    assert window_between(after, before) is None  # the engine restarted
    assert window_between(before, before) is None
    assert window_between(before, before._replace(at=200.0, first_tokens=26.0)) is None  # 19 requests
    # An overloaded engine says how long its queue is, not how long a prompt takes.
    queued = after._replace(first_token_seconds=1e7)
    window = window_between(before, queued)
    assert window is not None
    assert slowdown(STEP, window) is None
    assert learn(LiveCorrections(), KEY, STEP, {"a": window}).by_key == {}
    assert slowdown(STEP, window_of(slowed(4.0, 4.0), 25.0)) is None


SGLANG = """
# HELP sglang:prompt_tokens_total Number of prefill tokens processed.
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{engine_type="unified",model_name="m {x}",tp_rank="0"} 1200.0
sglang:generation_tokens_total{engine_type="unified",model_name="m {x}"} 300.0
sglang:time_to_first_token_seconds_sum{model_name="m"} 2.5
sglang:time_to_first_token_seconds_bucket{le="0.1",model_name="m"} 20.0
sglang:time_to_first_token_seconds_count{model_name="m"} 25.0
sglang:inter_token_latency_seconds_sum{model_name="m"} 3.0
sglang:inter_token_latency_seconds_count{model_name="m"} 270.0
"""


def test_sglangs_text_is_read() -> None:
    assert read_counters(SGLANG, 5.0) == EngineCounters(5.0, 1200.0, 300.0, 2.5, 25.0, 3.0, 270.0)
    # Two label sets, as of data-parallel ranks, add up; a missing histogram is no zero.
    twice = read_counters(SGLANG + 'sglang:inter_token_latency_seconds_count{model_name="m",dp_rank="1"} 30\n', 5.0)
    assert twice is not None
    assert twice.between == 300.0
    assert read_counters(SGLANG.replace("first_token", "last_token"), 5.0) is None
    assert read_counters(SGLANG.replace(" 2.5", " NaN"), 5.0) is None
    assert read_counters("<html>", 5.0) is None
