"""`cascadia predict`: what one replica would do, in JSON, with its source and uncertainty."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cascadia_api.errors import InputError
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.prediction import predict
from cascadia_solver.roofline import Shape

H100 = gpu_facts("H100-SXM-80GB")
L8, L70 = model_facts("meta-llama/Llama-3.1-8B-Instruct"), model_facts("meta-llama/Llama-3.1-70B-Instruct")


def on_one_h100(inputs: Any = 1024, outputs: Any = 256, **load: Any) -> Any:
    return predict(L8, H100, Shape(1, 1), "bf16", inputs, outputs, **load)


def test_fields_are_the_contract() -> None:
    document = json.loads(json.dumps(on_one_h100(rate=5.0).to_json()))
    assert set(document) >= {
        "fits", "kvCapacityTokens", "ttft", "tpot", "e2e", "outputTokensPerSecond", "saturated", "source",
        "uncertaintyPercent",
    }  # fmt: skip
    for name in ("ttft", "tpot", "e2e"):
        assert 0.0 < document[name]["p50Ms"] <= document[name]["p95Ms"]
    assert document["source"] == "roofline"
    assert document["uncertaintyPercent"] > 0


def test_same_arguments_same_numbers() -> None:
    assert on_one_h100([100, 2000], [50, 500], rate=3.0) == on_one_h100([100, 2000], [50, 500], rate=3.0)


def test_throughput_follows_the_rate_until_saturation() -> None:
    calm, busy = on_one_h100(rate=2.0), on_one_h100(rate=80.0)
    assert calm.output_tokens_per_second == pytest.approx(2.0 * 256, rel=0.05)
    assert not calm.saturated
    assert busy.saturated
    assert busy.output_tokens_per_second < 80.0 * 256
    assert busy.e2e.p95_ms > 10 * calm.e2e.p95_ms


def test_closed_loop_obeys_littles_law() -> None:
    for clients in (1, 16, 64):
        made = on_one_h100(concurrency=clients)
        assert made.output_tokens_per_second == pytest.approx(clients * 256 / (made.e2e.p50_ms / 1e3), rel=0.1)
        assert not made.saturated
    assert on_one_h100(concurrency=2000).saturated


@pytest.mark.parametrize(("clients", "outputs"), [(1, 1), (1, 64), (8, 2), (16, 256), (64, 1)])
def test_throughput_counts_the_time_outside_the_engine(clients: int, outputs: int) -> None:
    """Of a client that asks for one token, that is most of the time."""
    made = on_one_h100(inputs=8, outputs=outputs, concurrency=clients)
    cycle = made.e2e.p50_ms / 1e3
    assert made.output_tokens_per_second == pytest.approx(clients * outputs / cycle, rel=0.1)


def test_one_client_sees_bare_steps() -> None:
    made = on_one_h100(concurrency=1)
    assert made.e2e.p50_ms == pytest.approx(made.ttft.p50_ms + 255 * made.tpot.p50_ms)
    assert made.e2e.p95_ms == pytest.approx(made.e2e.p50_ms)
    assert on_one_h100(outputs=1, concurrency=1).tpot is None


def test_what_does_not_fit_says_so() -> None:
    made = predict(L70, H100, Shape(1, 1), "bf16", 100, 100, rate=1.0)
    assert not made.fits
    assert made.kv_capacity_tokens == 0
    assert made.to_json()["e2e"] is None
    assert "85.5 GB there" in made.reason


@pytest.mark.parametrize(
    ("inputs", "outputs", "load", "message"),
    [
        (10, 10, {}, "either a concurrency or a rate"),
        (10, 10, {"rate": 1.0, "concurrency": 1}, "either a concurrency or a rate"),
        (10, 10, {"rate": -1.0}, "rate: must be positive"),
        (10, 10, {"rate": 1e-300}, "rate: must be positive, from 1e-09 to 1000000 requests/s, not 1e-300"),
        (10, 10, {"rate": float("nan")}, "rate: must be positive"),
        (10, 10, {"concurrency": 0}, "concurrency: must be from 1"),
        (0, 10, {"rate": 1.0}, "input: lengths must be at least 1"),
        (10, float("nan"), {"rate": 1.0}, "output: lengths must be at least 1"),
        ([1, 2, 3], [1, 2], {"rate": 1.0}, "3 input lengths and 2 output lengths"),
        (131000, 1000, {"rate": 1.0}, "132000 tokens .* context window .* 131072"),
    ],
)
def test_wrong_arguments(inputs: Any, outputs: Any, load: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        on_one_h100(inputs, outputs, **load)


def test_ranks_divide_the_heads() -> None:
    for degree in (3, 64, 0):
        with pytest.raises(InputError, match=f"tensorParallel: {degree} does not divide the 32 attention heads"):
            predict(L8, H100, Shape(degree, 1), "bf16", 100, 100, rate=1.0)


def test_it_says_where_it_extrapolates() -> None:
    assert on_one_h100(rate=1.0).to_json()["extrapolates"] == []
    made = predict(L8, gpu_facts("L40S-48GB"), Shape(1, 2), "bf16", 100, 100, rate=1.0)
    assert made.extrapolates == ("no measured engine on L40S-48GB", "no measured engine with pipeline parallelism")
    assert made.uncertainty_percent > on_one_h100(rate=1.0).uncertainty_percent
