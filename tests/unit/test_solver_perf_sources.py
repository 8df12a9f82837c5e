"""Cost sources beside the roofline: refitted tables, and corrections learnt from engines."""

from __future__ import annotations

import json
import math
import random
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.errors import InputError
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import facts_from_config, model_facts
from cascadia_solver.live_correction import Correction, CorrectionKey, LiveCorrections, LiveSource
from cascadia_solver.measured_tables import MeasuredTables, StepTables
from cascadia_solver.prediction import predict
from cascadia_solver.roofline import Factors, Roofline, Shape
from cascadia_solver.sources import certainty, cost_source, engine_version
from cascadia_solver.step_fit import StepSample, fit_step_model
from cascadia_solver.steptime import StepModel, step_seconds

H100 = gpu_facts("H100-SXM-80GB")
L8, L70 = model_facts("meta-llama/Llama-3.1-8B-Instruct"), model_facts("meta-llama/Llama-3.3-70B-Instruct")
ONE, FOUR = Shape(1, 1), Shape(4, 1)
SLOW = Factors(bandwidth=0.65, flops=0.42, attention_flops=0.3, dense_layer_seconds=35e-6, prompt_layer_seconds=200e-6)
WORK = [(512.0, 131_328.0, 0.0, 0.0), (2000.0, 2e6, 16.0, 20_000.0), (0.0, 0.0, 1.0, 500.0), (0.0, 0.0, 96.0, 2e5)]


class TruthAsTables:
    """Tables that give the times of a step model."""

    def __init__(self, truth: StepModel) -> None:
        self.truth = truth

    def predict_prefill_latency(self, bs: int, isl: int) -> float:
        return 1e3 * step_seconds(self.truth, float(bs * isl), 0.5 * bs * isl * (isl + 1.0), 0.0, 0.0)

    def decode_step_latency(self, gen_tokens: int, isl: int, osl: int) -> float:
        assert osl == 2
        return 1e3 * step_seconds(self.truth, 0.0, 0.0, float(gen_tokens), float(gen_tokens * (isl + 1)))


def test_a_step_model_refitted_to_tables_gives_their_times() -> None:
    truth = Roofline(factors=SLOW).step_model(L70, H100, FOUR, "bf16")
    opened: list[tuple[Any, ...]] = []

    def open_tables(*asked: Any) -> StepTables:
        opened.append(asked)
        return TruthAsTables(truth)

    source = MeasuredTables(open_tables=open_tables)
    made = source.step_model(L70, H100, FOUR, "bf16")
    # Where arithmetic and weight reads take about equally long, how they overlap stays the roofline's.
    for work in WORK:
        assert step_seconds(made, *work) == pytest.approx(step_seconds(truth, *work), rel=0.07)
        assert step_seconds(Roofline().step_model(L70, H100, FOUR, "bf16"), *work) < 0.9 * step_seconds(truth, *work)
    # Memory and scheduling are not the tables' business.
    plain = Roofline().step_model(L70, H100, FOUR, "bf16")
    assert (made.kv_capacity_tokens, made.max_running) == (plain.kv_capacity_tokens, plain.max_running)
    # Llama 3.3 has the layers of the bundled Llama 3.1; the second question is answered from memory.
    source.step_model(L70, H100, FOUR, "bf16")
    assert opened == [("meta-llama/Meta-Llama-3.1-70B", "h100_sxm", "sglang", FOUR, "bf16", False)]
    prediction = predict(L70, H100, FOUR, "bf16", 512, 128, concurrency=4, source=source)
    assert (prediction.source, prediction.uncertainty_percent) == ("measured", 9.0)


@given(seed=st.integers(0, 10_000), noise=st.floats(0.0, 0.05))
@settings(max_examples=15, deadline=None)
def test_a_fit_is_no_worse_than_its_start_and_survives_noise(seed: int, noise: float) -> None:
    draw = random.Random(seed)
    start = Roofline().step_model(L8, H100, ONE, "bf16")
    truth = start._replace(**{
        name: getattr(start, name) * math.exp(draw.uniform(-0.7, 0.7))
        for name in ("weight_seconds", "token_seconds", "overhead_seconds", "decode_context_seconds")
    })  # fmt: skip
    samples = [
        StepSample(*work, step_seconds(truth, *work) * math.exp(draw.gauss(0.0, noise)))
        for work in [*WORK, (128.0, 8256.0, 0.0, 0.0), (8192.0, 3.4e7, 0.0, 0.0), (0.0, 0.0, 16.0, 1e5)]
    ]
    made, left = fit_step_model(start, samples)
    before = sorted(abs(step_seconds(start, *s[:4]) / s.seconds - 1.0) for s in samples)[len(samples) // 2]
    assert left / 100.0 <= before + 1e-6
    assert left < 100.0 * (0.02 + 2.0 * noise)
    assert min(made) >= 0.0


def test_tables_that_are_not_there_say_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", None)
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk", None)
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk.engine", None)
    with pytest.raises(InputError, match=r"optional extra: pip install 'cascadia\[measured\]'"):
        MeasuredTables().step_model(L8, H100, ONE, "bf16")
    with pytest.raises(InputError, match="no measured tables for MI300X-192GB; there are some for A100"):
        MeasuredTables().step_model(L8, gpu_facts("MI300X-192GB"), ONE, "bf16")
    own = facts_from_config(
        {"hidden_size": 1024, "num_hidden_layers": 7, "num_attention_heads": 16, "vocab_size": 32000}, "own"
    )
    with pytest.raises(InputError, match=r"no measured tables for the layers of own; .* use the built-in roofline"):
        MeasuredTables().step_model(own, H100, ONE, "bf16")
    assert MeasuredTables().extrapolations(L8, gpu_facts("L40S-48GB"), Shape(1, 2)) == (
        "tables of L40S-48GB not checked against engines",
        "no measured engine with pipeline parallelism",
    )


KEY = CorrectionKey(L8.name, H100.name, str(ONE), "sglang 0.5.9")


def learnt(ratios: list[float], phase: Any = "decode") -> LiveCorrections:
    corrections = LiveCorrections()
    for ratio in ratios:
        corrections = corrections.observed(KEY, phase, 0.010 * ratio, 0.010)
    return corrections


@given(truth=st.floats(0.6, 1.6), seed=st.integers(0, 10_000), outliers=st.lists(st.floats(0.01, 1000.0), max_size=12))
@settings(max_examples=40, deadline=None)
def test_a_correction_is_found_despite_outliers(truth: float, seed: int, outliers: list[float]) -> None:
    draw = random.Random(seed)
    ratios = [truth * math.exp(draw.gauss(0.0, 0.02)) for _ in range(40)] + outliers
    draw.shuffle(ratios)
    factor = learnt(ratios).by_key[KEY].factor("decode")
    assert math.log(factor) == pytest.approx(math.log(truth), abs=0.1 * abs(math.log(truth)) + 0.03)


def test_few_windows_correct_little_and_useless_ones_not_at_all() -> None:
    assert Correction().factor("decode") == 1.0
    assert 1.0 < learnt([1.5]).by_key[KEY].factor("decode") < 1.1
    assert learnt([0.0, math.nan, math.inf]).by_key == {}
    assert len(learnt([1.1] * 500).by_key[KEY].decode) == 64


def test_prompts_and_decoding_are_corrected_apart() -> None:
    plain = Roofline().step_model(L8, H100, ONE, "bf16")
    decoding = LiveSource(Roofline(), learnt([1.3] * 60), "sglang 0.5.9").step_model(L8, H100, ONE, "bf16")
    decode, prompt = (0.0, 0.0, 8.0, 8000.0), (4096.0, 8.4e6, 0.0, 0.0)
    assert step_seconds(decoding, *decode) == pytest.approx(1.3 * step_seconds(plain, *decode), rel=0.03)
    assert step_seconds(decoding, *prompt) == pytest.approx(step_seconds(plain, *prompt), rel=0.05)
    prompts = LiveSource(Roofline(), learnt([1.3] * 60, "prefill"), "sglang 0.5.9").step_model(L8, H100, ONE, "bf16")
    assert step_seconds(prompts, *decode) == pytest.approx(step_seconds(plain, *decode), rel=0.01)
    assert step_seconds(prompts, *prompt) == pytest.approx(1.3 * step_seconds(plain, *prompt), rel=0.05)


def test_a_correction_holds_for_its_own_model_gpu_and_version_only() -> None:
    corrections = learnt([1.3] * 60)
    same = LiveSource(Roofline(), corrections, "sglang 0.5.9")
    newer = LiveSource(Roofline(), corrections, "sglang 0.6.0")
    plain = Roofline().step_model(L8, H100, ONE, "bf16")
    assert newer.step_model(L8, H100, ONE, "bf16") == plain
    for model, gpu in ((L8, gpu_facts("H200-SXM-141GB")), (model_facts("Qwen/Qwen3-8B"), H100)):
        assert same.step_model(model, gpu, ONE, "bf16") == Roofline().step_model(model, gpu, ONE, "bf16")
    assert same.uncertainty_percent(L8, H100, ONE) < newer.uncertainty_percent(L8, H100, ONE)
    assert same.extrapolations(L8, H100, ONE) == ()
    assert newer.extrapolations(L8, H100, Shape(1, 2)) == (
        "no measured engine with pipeline parallelism",
        "no live correction learnt on TP1xPP2 of H100-SXM-80GB under sglang 0.6.0",
    )
    assert same.name == "live correction of roofline"


def test_a_shape_that_was_never_tried_takes_the_correction_of_the_others() -> None:
    """Else planning would go from each shape that turns out slow to the next that has not been tried."""
    corrections = learnt([1.3] * 60)
    for _ in range(60):
        corrections = corrections.observed(KEY._replace(shape="TP2xPP1"), "decode", 1.5, 1.0)
    source, untried = LiveSource(Roofline(), corrections, "sglang 0.5.9"), Shape(4, 1)
    step, plain = (cost.step_model(L8, H100, untried, "bf16") for cost in (source, Roofline()))
    factor = (1.3 * 1.5) ** (0.5 * 60 / 64)
    assert step.weight_seconds == pytest.approx(factor * plain.weight_seconds)
    assert step.token_seconds == plain.token_seconds
    assert source.uncertainty_percent(L8, H100, untried) == Roofline().uncertainty_percent(L8, H100, untried)
    (said,) = source.extrapolations(L8, H100, untried)
    assert said.startswith("no live correction learnt on TP4xPP1 of H100-SXM-80GB under sglang 0.5.9: ")
    assert said.endswith("the median of TP1xPP1, TP2xPP1 is taken")


def test_corrections_survive_json() -> None:
    corrections = learnt([0.8, 1.2, 3.0, 100.0]).observed(KEY, "prefill", 0.2, 0.1)
    assert LiveCorrections.from_json(json.loads(json.dumps(corrections.to_json()))) == corrections
    good = corrections.to_json()
    for broken, message in (
        ([], "schemaVersion: must be 1"),
        ({**good, "schemaVersion": 7}, "schemaVersion: must be 1"),
        ({**good, "corrections": 3}, "corrections: must be a list"),
        ({**good, "corrections": ["x"]}, r"corrections\[0\]: must be an object"),
        ({**good, "corrections": [{"model": "m"}]}, r"corrections\[0\]: needs model, gpu, shape and engineVersion"),
        ({**good, "corrections": [{**KEY._asdict(), "engineVersion": "v", "prefill": [], "decode": [9.0]}]},
         r"corrections\[0\].decode: must be a list of numbers of at most 1.39"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            LiveCorrections.from_json(broken)


def test_flags_make_a_source() -> None:
    assert cost_source() == Roofline()
    assert cost_source("roofline", engine_version("vllm")) == Roofline(engine="vllm")
    tables = cost_source("measured", engine_version("trtllm:1.2.0"))
    assert tables.name == "measured"
    assert tables.extrapolations(L8, H100, ONE) == ("tables of trtllm 1.3.0rc20, not 1.2.0",)
    for text in ("tgi", "sglang:", ""):
        with pytest.raises(InputError, match="use sglang, vllm, trtllm, with or without a version"):
            engine_version(text)
    with pytest.raises(InputError, match="costSource: 'oracle' is unknown"):
        cost_source("oracle")
    # Corrections are of one version: the only one learnt, or the one that is named.
    corrections = learnt([1.3] * 60)
    assert cost_source(corrections=corrections) == LiveSource(Roofline(), corrections, "sglang 0.5.9")
    both = corrections.observed(KEY._replace(engine_version="sglang 0.6.0"), "decode", 0.01, 0.01)
    with pytest.raises(InputError, match=r"name one of sglang:0\.5\.9, sglang:0\.6\.0"):
        cost_source(corrections=both)
    named = cost_source(corrections=both, engine=engine_version("sglang:0.5.9"))
    assert named.step_model(L8, H100, ONE, "bf16").weight_seconds > 1.2 * Roofline().step_model(
        L8, H100, ONE, "bf16"
    ).weight_seconds  # fmt: skip


def test_certainty_is_of_the_least_certain_replica() -> None:
    source = Roofline()
    found = certainty(
        [
            (source, "small", L8, H100, ONE),
            (source, "large", L70, H100, Shape(4, 2)),
            (source, "large", L70, H100, FOUR),
        ]
    )
    assert found.uncertainty_percent == source.uncertainty_percent(L70, H100, Shape(4, 2))
    assert found.extrapolates == ("large: no measured engine with pipeline parallelism",)


def test_mixtral_is_found_in_the_wheel_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs the extra: pip install 'cascadia[measured]'")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    mixtral, h100 = model_facts("mistralai/Mixtral-8x7B-Instruct-v0.1"), gpu_facts("H100-SXM-80GB")
    step = MeasuredTables().step_model(mixtral, h100, Shape(4, 1), "bf16")
    assert step.kv_capacity_tokens > 100_000
