"""Step times: closed form against the sum, monotony, and freedom from heavy imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_solver.steptime import StepModel, decode_run_seconds, step_seconds

SMALL = st.floats(1e-7, 1e-3)
STEPS = st.builds(
    StepModel,
    token_seconds=SMALL,
    logits_seconds=SMALL,
    weight_seconds=st.floats(1e-4, 1e-1),
    expert_seconds=st.sampled_from([0.0, 0.01]),
    expert_miss=st.floats(0.5, 0.99),
    prefill_pair_seconds=st.floats(0.0, 1e-8),
    prefill_window_pair_seconds=st.floats(0.0, 1e-8),
    decode_context_seconds=st.floats(0.0, 1e-6),
    decode_window_seconds=st.sampled_from([0.0, 1e-7, 1e-6]),
    window_tokens=st.sampled_from([0.0, 16.0, 100.0]),
    transfer_token_seconds=st.floats(0.0, 1e-6),
    overhead_seconds=st.floats(0.0, 1e-3),
    prefill_share=st.sampled_from([1.0, 0.625]),
    decode_share=st.sampled_from([1.0, 0.5, 0.25]),
    kv_capacity_tokens=st.just(1e5),
    max_running=st.just(64.0),
    chunk_tokens=st.just(512.0),
    prompt_overhead_seconds=st.floats(0.0, 1e-2),
    request_seconds=st.floats(0.0, 1e-4),
    overlap_loss=st.floats(0.0, 1.0),
)


@given(step=STEPS, requests=st.integers(1, 80), each=st.integers(1, 200), steps=st.integers(0, 120))
@settings(max_examples=150, deadline=None)
def test_a_run_of_decode_steps_is_the_sum_of_its_steps(step: StepModel, requests: int, each: int, steps: int) -> None:
    context = requests * each + requests // 2
    first = step_seconds(step, 0.0, 0.0, float(requests), float(context))
    total = sum(step_seconds(step, 0.0, 0.0, float(requests), float(context + j * requests)) for j in range(steps))
    assert decode_run_seconds(step, first, float(requests), float(context), float(steps)) == pytest.approx(
        total, rel=1e-11, abs=1e-15
    )


@given(step=STEPS, prefill=st.integers(0, 512), requests=st.integers(1, 80), each=st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_more_work_takes_no_less_time(step: StepModel, prefill: int, requests: int, each: int) -> None:
    def seconds(tokens: int, batch: int, context: int) -> float:
        return step_seconds(step, float(tokens), 0.5 * tokens * (tokens + 1), float(batch), float(context))

    base = seconds(prefill, requests, requests * each)
    assert seconds(prefill + 1, requests, requests * each) >= base
    assert seconds(prefill, requests + 1, (requests + 1) * each) >= base * (1 - 1e-12)
    assert seconds(prefill, requests, requests * each + 1) >= base
    assert base >= step.weight_seconds + step.overhead_seconds


def test_only_the_experts_that_tokens_are_routed_to_are_read() -> None:
    step = StepModel(*[0.0] * len(StepModel._fields))._replace(
        expert_seconds=1.0, expert_miss=0.75, prefill_share=1.0, decode_share=1.0
    )
    assert step_seconds(step, 0.0, 0.0, 1.0, 1.0) == pytest.approx(0.25)
    assert step_seconds(step, 0.0, 0.0, 2.0, 2.0) == pytest.approx(1 - 0.75**2)
    assert step_seconds(step, 1000.0, 0.0, 0.0, 0.0) == pytest.approx(1.0)


def test_pipeline_divides_arithmetic_but_not_weight_reads() -> None:
    step = StepModel(*[0.0] * len(StepModel._fields))._replace(
        token_seconds=1.0, weight_seconds=3.0, decode_context_seconds=0.01, prefill_share=0.625, decode_share=0.5
    )
    assert step_seconds(step, 0.0, 0.0, 8.0, 0.0) == pytest.approx(4.0)
    assert step_seconds(step, 0.0, 0.0, 2.0, 0.0) == pytest.approx(3.0)
    # One request passes the stages alone: attention over its context is not divided.
    assert step_seconds(step, 0.0, 0.0, 1.0, 100.0) - step_seconds(step, 0.0, 0.0, 1.0, 0.0) == pytest.approx(1.0)
    assert step_seconds(step, 0.0, 0.0, 8.0, 100.0) - step_seconds(step, 0.0, 0.0, 8.0, 0.0) == pytest.approx(0.5)


def test_a_step_model_is_a_json_list() -> None:
    step = StepModel(*[float(i) for i in range(len(StepModel._fields))])
    assert StepModel(*json.loads(json.dumps(step))) == step


def test_engines_load_no_numpy() -> None:
    code = "import sys, cascadia_solver.batcher; print(sorted({'numpy', 'numba', 'pydantic'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[]"
