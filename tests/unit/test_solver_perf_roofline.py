"""The roofline against published step times, memory, and the shapes that it allows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cascadia_api.errors import InfeasibleError, InputError
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import ModelFacts, model_facts
from cascadia_solver.factors import ENGINES
from cascadia_solver.prediction import predict
from cascadia_solver.replica_memory import MemoryUse
from cascadia_solver.roofline import Factors, Roofline, Shape, factors_for, memory_use, step_model
from cascadia_solver.shapes import replica_options
from cascadia_solver.steptime import step_seconds

H100, H200 = gpu_facts("H100-SXM-80GB"), gpu_facts("H200-SXM-141GB")
L8, L70 = model_facts("meta-llama/Llama-3.1-8B-Instruct"), model_facts("meta-llama/Llama-3.1-70B-Instruct")
R1 = model_facts("deepseek-ai/DeepSeek-R1")


@pytest.mark.parametrize(
    ("model", "gpu", "tensor", "concurrency", "tpot_ms"),
    [
        (L8, H100, 1, 1, 6.61),
        (L8, H100, 1, 16, 7.93),
        (L8, H100, 1, 64, 12.80),
        (L70, H100, 4, 1, 15.34),
        (L70, H100, 4, 16, 17.50),
        (L70, H100, 4, 64, 27.11),
        (L8, H200, 1, 1, 4.87),
        (L8, H200, 1, 16, 6.01),
        (L8, H200, 1, 64, 10.23),
        (L70, H200, 4, 1, 11.65),
        (L70, H200, 4, 16, 13.69),
        (L70, H200, 4, 64, 22.68),
    ],
    ids=str,
)
def test_time_per_token_is_near_the_measured_tables(
    model: object, gpu: object, tensor: int, concurrency: int, tpot_ms: float
) -> None:
    """aiconfigurator 0.12's tables for SGLang, 1,024 tokens in and 512 out, bf16."""
    made = predict(model, gpu, Shape(tensor, 1), "bf16", 1024, 512, concurrency=concurrency)  # type: ignore[arg-type]
    assert made.tpot is not None
    assert made.tpot.p50_ms == pytest.approx(tpot_ms, rel=0.25)


def test_no_replica_beats_the_hardware() -> None:
    for gpu in (H100, H200, gpu_facts("B200-SXM-180GB"), gpu_facts("MI300X-192GB")):
        for option in replica_options(L70, gpu, "bf16", max_gpus=8):
            weights = 2.0 * (L70.params_total - L70.embedding_params) / option.shape.tensor_parallel
            assert step_seconds(option.step, 0.0, 0.0, 1.0, 100.0) > weights / gpu.memory_bandwidth
            tokens = 4096.0
            flops = 2.0 * tokens * L70.common_params / option.gpus
            assert step_seconds(option.step, tokens, 0.0, 0.0, 0.0) > flops / gpu.bf16_flops


def test_factors_stay_within_their_bounds() -> None:
    for name in ("A100-SXM-80GB", "H100-SXM-80GB", "H100-PCIe-80GB", "H200-SXM-141GB", "B200-SXM-180GB", "L40S-48GB",
                 "L4-24GB", "MI300X-192GB"):  # fmt: skip
        for engine in ENGINES:
            factors = factors_for(gpu_facts(name), engine)
            assert 0.4 <= factors.flops <= 0.8
            assert 0.25 <= factors.narrow_flops <= 0.8
            assert 0.6 <= factors.bandwidth <= 0.95
            assert min(factors.kv_bandwidth, factors.expert_bandwidth) >= 0.3
            assert max(factors.kv_bandwidth, factors.expert_bandwidth) <= 0.95
            assert 4e-6 <= factors.dense_layer_seconds <= 40e-6
            assert 10e-6 <= factors.moe_layer_seconds <= 120e-6
            assert 1e-6 <= factors.all_reduce_seconds <= 15e-6
    with pytest.raises(InputError, match="engine: 'tgi' is unknown; use sglang, vllm, trtllm"):
        factors_for(H100, "tgi")


def test_cache_capacity_is_what_the_weights_leave() -> None:
    use = memory_use(L8, H100, Shape(1, 1), "bf16")
    assert use.fits
    assert use.weights_bytes == L8.weights_bytes("bf16")
    assert use.kv_capacity_tokens == int((H100.memory_bytes - use.weights_bytes - use.reserved_bytes) // 131072)
    assert step_model(L8, H100, Shape(1, 1), "bf16").kv_capacity_tokens == use.kv_capacity_tokens
    # 16 ranks over 8 key-value heads: each holds one, so no more fits than on 8.
    assert memory_use(L70, H100, Shape(16, 1), "bf16").kv_bytes_per_token == (
        memory_use(L70, H100, Shape(8, 1), "bf16").kv_bytes_per_token
    )
    # A latent is held whole by every rank.
    assert memory_use(R1, H100, Shape(16, 1), "fp8").kv_bytes_per_token == R1.kv_bytes_per_token()
    fp8 = memory_use(L8, H100, Shape(1, 1), "bf16", kv_precision="fp8")
    assert fp8.kv_capacity_tokens == pytest.approx(2 * use.kv_capacity_tokens, abs=1)


def test_lower_precision_is_faster_and_smaller() -> None:
    bf16, fp8, int4 = (step_model(L70, H100, Shape(4, 1), precision) for precision in ("bf16", "fp8", "int4"))
    assert bf16.weight_seconds > fp8.weight_seconds > int4.weight_seconds
    assert bf16.kv_capacity_tokens < fp8.kv_capacity_tokens < int4.kv_capacity_tokens
    assert 0.5 * bf16.token_seconds <= fp8.token_seconds < 0.75 * bf16.token_seconds
    assert int4.token_seconds == bf16.token_seconds
    # A100 has no fp8 arithmetic: smaller weights, no faster products.
    a100 = gpu_facts("A100-SXM-80GB")
    assert step_model(L8, a100, Shape(1, 1), "fp8").token_seconds == step_model(L8, a100, Shape(), "bf16").token_seconds


def test_crossing_nodes_is_dearer_than_staying() -> None:
    inside = step_model(L70, H100, Shape(8, 1), "bf16", gpus_per_node=8)
    across = step_model(L70, H100, Shape(8, 1), "bf16", gpus_per_node=4)
    assert across.transfer_token_seconds > inside.transfer_token_seconds
    assert across.overhead_seconds > inside.overhead_seconds
    split = step_model(L70, H100, Shape(4, 2), "bf16", gpus_per_node=4)
    assert split.transfer_token_seconds < across.transfer_token_seconds


def test_a_model_that_does_not_fit_says_the_bytes() -> None:
    use = memory_use(L70, H100, Shape(1, 1), "bf16")
    assert not use.fits
    with pytest.raises(InfeasibleError, match=r"does not fit: 15\d\.\d GB needed per GPU .* 85\.5 GB there") as caught:
        step_model(L70, H100, Shape(1, 1), "bf16")
    assert caught.value.reason == "ModelFitsNowhere"
    assert caught.value.shortfalls[0].needed == use.needed_bytes
    with pytest.raises(InfeasibleError, match="fits on no shape of at most 8 x H100-SXM-80GB: even TP8xPP1"):
        replica_options(R1, H100, "bf16", max_gpus=8)
    with pytest.raises(InputError, match="pipelineParallel: 64 stages for 32 layers"):
        step_model(L8, H100, Shape(1, 64), "bf16")
    with pytest.raises(InputError, match="kvPrecision"):
        step_model(L8, H100, Shape(1, 1), "bf16", kv_precision="int4")


def test_options_are_all_shapes_that_fit() -> None:
    shapes = [option.shape for option in replica_options(L70, H100, "bf16", max_gpus=8)]
    assert shapes == [(1, 2), (2, 1), (1, 4), (2, 2), (4, 1), (1, 8), (2, 4), (4, 2), (8, 1)]
    assert {o.shape.tensor_parallel for o in replica_options(L70, H100, "bf16", max_tensor_parallel=2)} == {1, 2}
    # 14 query heads split two ways at most.
    half = model_facts("Qwen/Qwen2.5-0.5B-Instruct")
    assert {o.shape.tensor_parallel for o in replica_options(half, H100, "bf16", max_gpus=8)} == {1, 2}
    # Beyond a node only by whole nodes.
    across = replica_options(L70, H100, "bf16", gpus_per_node=4, max_gpus=16)
    assert {o.shape.tensor_parallel for o in across} == {1, 2, 4, 8, 16}
    for option in replica_options(R1, H100, "fp8", max_gpus=32):
        assert option.gpus == option.shape.tensor_parallel * option.shape.pipeline_parallel >= 16
        assert option.step.kv_capacity_tokens > 4096


def test_uncertainty_says_where_it_extrapolates() -> None:
    source = Roofline()
    known = source.uncertainty_percent(L70, H100, Shape(4, 1))
    assert source.uncertainty_percent(L70, H100, Shape(4, 2)) > known
    assert source.uncertainty_percent(R1, H100, Shape(16, 1)) > known
    assert source.uncertainty_percent(L70, gpu_facts("MI300X-192GB"), Shape(4, 1)) > known
    assert Roofline(Factors(uncertainty_percent=7.0)).uncertainty_percent(L70, H100, Shape(4, 1)) == 7.0
    assert source.extrapolations(L70, H100, Shape(8, 1)) == ()
    assert source.extrapolations(R1, H100, Shape(16, 2)) == (
        "no measured engine with pipeline parallelism",
        "no measured engine with tensor parallelism over several nodes",
    )
    assert source.extrapolations(L8, gpu_facts("MI300X-192GB"), Shape()) == ("no measured engine on MI300X-192GB",)


def test_a_mixture_pays_for_the_experts_that_a_token_passes() -> None:
    """gpt-oss routes a token to 4 experts, Qwen3-30B to 8."""
    only_experts = Factors(dense_layer_seconds=0.0, step_seconds=0.0)
    few, many = model_facts("openai/gpt-oss-20b"), model_facts("Qwen/Qwen3-30B-A3B")
    made = [
        step_model(model, H100, Shape(1, 1), "bf16", factors=only_experts).overhead_seconds / model.layers
        for model in (few, many)
    ]
    assert made[0] == pytest.approx(0.5 * made[1])


def test_narrow_weights_pay_for_bringing_activations_into_their_format() -> None:
    base = Factors(fp8_moe_layer_seconds=0.0, fp4_layer_seconds=0.0)
    paying = replace(base, fp8_moe_layer_seconds=20e-6, fp4_layer_seconds=30e-6)
    b200 = gpu_facts("B200-SXM-180GB")
    dense, mixture = model_facts("Qwen/Qwen3-32B"), model_facts("Qwen/Qwen3-30B-A3B")

    def further(model: ModelFacts, precision: str) -> float:
        free, dear = (step_model(model, b200, Shape(1, 1), precision, factors=f) for f in (base, paying))
        return dear.overhead_seconds - free.overhead_seconds

    assert further(dense, "fp4") == pytest.approx(64 * 30e-6)
    assert further(mixture, "fp8") == pytest.approx(48 * 8 / 9 * 20e-6)
    assert [further(dense, "fp8"), further(mixture, "fp4"), further(dense, "bf16")] == [0.0, 0.0, 0.0]


def test_latents_are_on_every_rank() -> None:
    """Projections down to the latents are not split: eight ranks read more than an eighth of the weights."""
    factors = Factors()
    eight = step_model(R1, H200, Shape(8, 1), "fp8", factors=factors)
    sixteen = step_model(R1, H200, Shape(16, 1), "fp8", factors=factors)
    assert sixteen.weight_seconds > 0.5 * eight.weight_seconds
    assert sixteen.token_seconds > 0.5 * eight.token_seconds
    assert sixteen.expert_seconds == pytest.approx(0.5 * eight.expert_seconds)


def test_linear_attention_keeps_no_cache_but_a_state() -> None:
    hybrid = model_facts("Qwen/Qwen3.5-397B-A17B")
    assert hybrid.kv_bytes_per_token() == 15 * 2 * 2 * 256 * 2
    step = step_model(hybrid, H200, Shape(8, 1), "fp8")
    assert step.decode_context_seconds < step_model(R1, H200, Shape(8, 1), "fp8").decode_context_seconds
    assert step.request_seconds > factors_for(H200).request_seconds


def test_a_replica_that_misses_by_little_is_told_with_digits_that_differ() -> None:
    short = MemoryUse(16e9, 8.2e9, 24.19e9, 0.0, 0)
    assert short.reason.startswith("does not fit: 24.20 GB needed per GPU (16.0 weights")
    assert short.reason.endswith(", 24.19 GB there")
    just = MemoryUse(16e9, 8e9, 24e9, 0.0, 4096)
    assert just.reason.startswith("fits: 24.0 GB needed")
