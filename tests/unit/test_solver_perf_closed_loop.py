"""The closed form of a closed loop: conservation of work, against simulation, and what it cannot know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.closed_loop import ANSWER_SHARE, closed_loop, closed_loops
from cascadia_solver.prediction import predict
from cascadia_solver.roofline import Roofline, Shape, step_model
from cascadia_solver.steptime import StepModel, decode_run_seconds, step_seconds

H100 = gpu_facts("H100-SXM-80GB")
L8, L70 = model_facts("meta-llama/Llama-3.1-8B-Instruct"), model_facts("meta-llama/Llama-3.1-70B-Instruct")
STEP = step_model(L8, H100, Shape(1, 1), "bf16")


def test_one_client_pays_its_own_prompt_and_tokens() -> None:
    loop = closed_loop(STEP, 1, 1000, 201)
    prompt = step_seconds(STEP, 1000.0, 500_500.0, 0.0, 0.0)
    first = step_seconds(STEP, 0.0, 0.0, 1.0, 1001.0)
    tokens = decode_run_seconds(STEP, first, 1.0, 1001.0, 200.0)
    assert loop.end_to_end == pytest.approx(STEP.first_token_seconds + prompt + tokens, rel=1e-3)
    assert (loop.waiting, loop.in_service) == (0.0, 1.0)


@given(
    clients=st.integers(1, 400), inputs=st.integers(1, 12_000), outputs=st.integers(2, 3000),
    bunching=st.floats(0.0, 3.0),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_bunches_move_time_but_add_none(clients: int, inputs: int, outputs: int, bunching: float) -> None:
    plain = closed_loop(STEP._replace(bunching=0.0), clients, inputs, outputs)
    bunched = closed_loop(STEP._replace(bunching=bunching), clients, inputs, outputs)
    assert bunched.end_to_end == plain.end_to_end
    assert plain.first_token <= bunched.first_token <= bunched.end_to_end * (1 + 1e-12)
    more = closed_loop(STEP._replace(bunching=bunching), clients + 1, inputs, outputs)
    assert more.end_to_end >= bunched.end_to_end
    assert more.in_service >= bunched.in_service


def test_answers_of_many_lengths_pull_bunches_apart() -> None:
    step = STEP._replace(bunching=0.5)
    firsts = [closed_loop(step, 64, 1000, 500, spread).first_token for spread in (0.0, 0.1, 0.5, 2.0)]
    assert firsts == sorted(firsts, reverse=True)
    scattered = closed_loop(step._replace(bunching=0.0), 64, 1000, 500)
    assert firsts[-1] - scattered.first_token < 0.25 * (firsts[0] - scattered.first_token)
    # Nor does a client whose answers vary wait as long for a first token as one whose answers do not.
    source = _Bunching()
    object.__setattr__(source, "share", 0.5)
    lengths = np.linspace(1.0, 999.0, 500)
    alike = predict(L8, H100, Shape(1, 1), "bf16", 1000, 500, concurrency=64, source=source)
    mixed = predict(L8, H100, Shape(1, 1), "bf16", 1000, lengths, concurrency=64, source=source)
    assert alike.ttft is not None
    assert mixed.ttft is not None
    assert mixed.ttft.p50_ms < 0.5 * alike.ttft.p50_ms


def test_clients_beyond_the_cache_wait() -> None:
    small = STEP._replace(kv_capacity_tokens=10 * (1000.0 + ANSWER_SHARE * 500.0))
    fits, over = closed_loop(small, 10, 1000, 500), closed_loop(small, 30, 1000, 500)
    assert (fits.waiting, fits.in_service, over.in_service) == (0.0, 10.0, 10.0)
    assert over.end_to_end == pytest.approx(3.0 * fits.end_to_end)
    assert over.first_token == pytest.approx(fits.first_token + over.waiting)


def test_many_settings_at_once_are_the_same() -> None:
    steps = [STEP, step_model(L70, H100, Shape(4, 1), "fp8")]
    many = closed_loops(steps, [1, 0, 1], [4, 16, 64], [100, 2000, 500], [50, 500, 5])
    for row, (which, *setting) in enumerate(zip([1, 0, 1], [4, 16, 64], [100, 2000, 500], [50, 500, 5], strict=True)):
        assert tuple(many[row]) == closed_loop(steps[which], *setting)


@pytest.mark.parametrize(
    ("clients", "inputs", "outputs"), [(4, 1024, 256), (48, 1024, 1024), (96, 256, 512), (16, 8192, 512)]
)
def test_prediction_agrees_with_the_closed_form(clients: int, inputs: int, outputs: int) -> None:
    made = predict(L8, H100, Shape(1, 1), "bf16", inputs, outputs, concurrency=clients)
    loop = closed_loop(STEP, clients, inputs, outputs)
    assert made.e2e is not None
    assert made.ttft is not None
    assert made.e2e.p50_ms / 1e3 == pytest.approx(loop.end_to_end, rel=0.07)
    assert made.ttft.p50_ms / 1e3 == pytest.approx(loop.first_token, rel=0.15)


class _Bunching(Roofline):
    """The roofline with another share of prompts that a client waits for."""

    share = 0.0

    def step_model(self, *replica: object, **more: object) -> StepModel:
        return super().step_model(*replica, **more)._replace(bunching=self.share)  # type: ignore[arg-type]


def test_bunches_leave_the_end_where_it_is() -> None:
    def asked(share: float) -> tuple[float, float, float]:
        source = _Bunching()
        object.__setattr__(source, "share", share)
        made = predict(L8, H100, Shape(1, 1), "bf16", 2000, 300, concurrency=32, source=source)
        assert made.ttft is not None
        assert made.tpot is not None
        assert made.e2e is not None
        return made.ttft.p50_ms, made.tpot.p50_ms, made.e2e.p50_ms

    few, many = asked(0.05), asked(0.5)
    assert many[0] > 2.0 * few[0]
    assert many[1] < few[1]
    assert many[2] == pytest.approx(few[2], rel=1e-6)
    assert np.isclose(many[0] + 299 * many[1], many[2], rtol=0.02)
