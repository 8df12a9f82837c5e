"""Models and GPUs that the catalogue does not have, given in the manifest; precisions that a GPU does not have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.errors import InfeasibleError, InputError
from cascadia_cli.validating import catalogue_problems
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.manifest import gpu_of, model_of, precision_of
from cascadia_solver.catalogue.models import facts_from_config, model_facts
from cascadia_solver.inputs import PlanningInputs, inputs_id, traffic_of
from cascadia_solver.prediction import predict
from cascadia_solver.roofline import Shape
from cascadia_solver.shapes import replica_options, unsupported_precision
from cascadia_solver.sites import find_sites, pool_budgets
from tests.support.planning import cascade

H100, A100, B200 = (gpu_facts(name) for name in ("H100-SXM-80GB", "A100-SXM-80GB", "B200-SXM-180GB"))
OWN_GPU = {
    "memoryGigabytes": 96,
    "memoryGigabytesPerSecond": 4000,
    "bf16Teraflops": 148,
    "fp8Teraflops": 296,
    "linkGigabytesPerSecond": 400,
}
OWN_MODEL = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 100_000,
    "max_position_embeddings": 16_384,
    "quantization_config": {"quant_method": "awq", "bits": 4},
}


def own(config: Any = OWN_MODEL, spec: dict[str, Any] | None = None, **pool: Any) -> CascadeDeployment:
    text = config if isinstance(config, str) else json.dumps(config)
    model = {"source": {"huggingFace": {"repo": "acme/own-8b"}}, "configJson": text, "precision": None}
    pools = [{"name": "h100", "gpu": "H20-96GB", "gpuSpec": spec or OWN_GPU, "maxGpus": 8} | pool]
    return cascade(models=("small",), model_fields={"small": model}, pools=pools, objective={"minQuality": "0.3"})


def test_a_manifest_gives_its_own_model_and_gpu() -> None:
    manifest = own()
    assert catalogue_problems(manifest) == []
    model, gpu = model_of(manifest.spec.models[0]), gpu_of(manifest.spec.gpus.pools[0])
    assert (model.name, model.vocab, model.context_window) == ("acme/own-8b", 100_000, 16_384)
    assert precision_of(manifest.spec.models[0], model) == "int4"
    assert (gpu.name, gpu.memory_bytes, gpu.memory_bandwidth, gpu.bf16_flops, gpu.fp8_flops, gpu.link_bandwidth) == (
        "H20-96GB", 96e9, 4e12, 148e12, 296e12, 400e9,
    )  # fmt: skip
    inputs = PlanningInputs(manifest)
    traffic, budgets = traffic_of(inputs), pool_budgets(manifest.spec, None)
    sites = find_sites(manifest.spec, traffic.facts, budgets, traffic.sample, percentile=95.0, sources=inputs.sources)
    assert sites.at[0, 0].options[0].step.kv_capacity_tokens > 100_000
    made = predict(model, gpu, Shape(), "int4", 500, 100, rate=1.0)
    assert made.extrapolates == (
        "its configuration names no architecture: taken for a decoder with gated feed-forward layers",
        "no measured engine on H20-96GB",
    )
    # Other numbers of the same name are another plan.
    faster = own(spec=OWN_GPU | {"memoryGigabytesPerSecond": 4800})
    ids = {inputs_id(PlanningInputs(m), traffic.table, pool_budgets(m.spec, None)) for m in (manifest, own(), faster)}
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("manifest", "field", "words"),
    [
        (own("{,"), "spec.models[0].configJson", "is not JSON: line 1, column 2"),
        (own("[1]"), "spec.models[0].configJson", "must be a JSON object, not list"),
        (own(OWN_MODEL | {"vocab_size": -1}), "spec.models[0].configJson.vocab_size", "at least 1, not -1"),
        (own({"hidden_size": 64}), "spec.models[0].configJson.num_hidden_layers", "is missing"),
        (own(gpu="h100-sxm-80gb"), "spec.gpus.pools[0].gpuSpec", "is in the catalogue: leave gpuSpec out"),
        (own(gpuSpec=None), "spec.gpus.pools[0].gpu", "give its five numbers as gpuSpec"),
    ],
)
def test_own_facts_that_are_wrong_are_named(manifest: CascadeDeployment, field: str, words: str) -> None:
    problem = catalogue_problems(manifest)[0]
    assert problem.field == field
    assert words in problem.message
    with pytest.raises(InputError) as caught:
        _planned(manifest, field)
    assert (caught.value.problems[0].field, caught.value.problems[0].message) == (field, problem.message)


def _planned(manifest: CascadeDeployment, field: str) -> object:
    return pool_budgets(manifest.spec, None) if "gpus" in field else traffic_of(PlanningInputs(manifest))


@pytest.mark.parametrize(
    ("model", "gpu", "precision", "words"),
    [
        (
            "meta-llama/Llama-3.1-8B-Instruct",
            A100,
            "fp8",
            "bf16 312, int8 624, fp8 0); use bf16, int8, int4",
        ),
        ("nvidia/Llama-3.3-70B-Instruct-FP4", H100, "fp4", "H100-SXM-80GB has no fp4 arithmetic"),
        ("deepseek-ai/DeepSeek-R1", gpu_facts("MI300X-192GB"), "fp4", "bf16 1307, int8 2615, fp8 2615, fp4 0"),
    ],
)
def test_a_precision_that_the_gpu_lacks_is_refused_with_the_numbers(
    model: str, gpu: Any, precision: str, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        predict(model_facts(model), gpu, Shape(8, 1), precision, 100, 100, rate=1.0)
    assert caught.value.problems[0].field == "precision"
    assert words in str(caught.value)
    with pytest.raises(InfeasibleError, match=f"has no {precision} arithmetic") as refused:
        replica_options(model_facts(model), gpu, precision)
    assert refused.value.reason == "PrecisionUnsupported"


def test_published_precisions_are_known() -> None:
    native = {
        "meta-llama/Llama-3.1-8B-Instruct": "bf16",
        "deepseek-ai/DeepSeek-R1": "fp8",
        "Qwen/Qwen3-32B-FP8": "fp8",
        "Qwen/Qwen3-32B": "bf16",
        "openai/gpt-oss-120b": "fp4",
        "nvidia/DeepSeek-R1-NVFP4": "fp4",
        "moonshotai/Kimi-K2.5": "int4",
    }
    assert {repo: model_facts(repo).native_precision for repo in native} == native
    # MXFP4 weights are served without such arithmetic too, at the 16-bit rate.
    oss = model_facts("openai/gpt-oss-120b")
    assert replica_options(oss, A100, "fp4")[0].gpus == replica_options(oss, H100, "fp4")[0].gpus == 1
    assert predict(model_facts("nvidia/DeepSeek-R1-NVFP4"), B200, Shape(4, 1), "fp4", 1000, 100, concurrency=1).fits
    compressed = {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}},
    }
    assert facts_from_config(OWN_MODEL | {"quantization_config": compressed}).native_precision == "fp8"


# A model of each family of the catalogue.
FAMILIES = {
    "Llama 3": "meta-llama/Meta-Llama-3-8B-Instruct",
    "Llama 3.1": "meta-llama/Llama-3.1-70B-Instruct",
    "Llama 3.3": "meta-llama/Llama-3.3-70B-Instruct",
    "Llama 4": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "Qwen 2.5": "Qwen/Qwen2.5-72B-Instruct",
    "Qwen 3": "Qwen/Qwen3-32B",
    "Qwen 3, mixture": "Qwen/Qwen3-30B-A3B",
    "DeepSeek V3": "deepseek-ai/DeepSeek-V3-0324",
    "DeepSeek R1": "deepseek-ai/DeepSeek-R1",
    "DeepSeek distills": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    "Mistral": "mistralai/Mistral-7B-Instruct-v0.3",
    "Mixtral": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "Gemma": "google/gemma-3-27b-it",
    "gpt-oss": "openai/gpt-oss-20b",
    "Phi": "microsoft/phi-4",
}


@pytest.mark.parametrize("name", ["A100-SXM-80GB", "H100-SXM-80GB", "H200-SXM-141GB", "B200-SXM-180GB", "L40S-48GB",
                                  "L4-24GB", "MI300X-192GB"])  # fmt: skip
def test_every_family_is_predicted_on_every_gpu(name: str) -> None:
    gpu = gpu_facts(name)
    for repo in FAMILIES.values():
        model = model_facts(repo)
        small = gpu.memory_bytes < 30e9 or unsupported_precision(model, gpu, model.native_precision)
        precision = "int4" if small else model.native_precision
        smallest = replica_options(model, gpu, precision, max_gpus=128)[0]
        made = predict(model, gpu, smallest.shape, precision, 500, 50, concurrency=1)
        assert made.fits
        assert made.e2e is not None
        assert 0.01 < made.e2e.p50_ms / 1e3 < 20.0, (repo, name)
