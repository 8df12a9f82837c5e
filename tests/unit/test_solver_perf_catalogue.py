"""Facts about models and GPUs are right, and wrong names and configurations are told clearly."""

from __future__ import annotations

import pytest

from cascadia_api.errors import InputError
from cascadia_solver.catalogue.gpus import GPUS, custom_gpu, gpu_facts
from cascadia_solver.catalogue.models import facts_from_config, model_facts
from cascadia_solver.catalogue.published import MODELS
from cascadia_solver.measured_tables import MeasuredTables
from cascadia_solver.roofline import Roofline, Shape

# Published parameter counts, billions: total, and active per token where it differs.
PUBLISHED = {
    "meta-llama/Llama-3.1-8B-Instruct": (8.03, None),
    "meta-llama/Llama-3.1-70B-Instruct": (70.55, None),
    "meta-llama/Llama-3.1-405B-Instruct": (405.85, None),
    "meta-llama/Llama-3.3-70B-Instruct": (70.55, None),
    "meta-llama/Meta-Llama-3-8B-Instruct": (8.03, None),
    "Qwen/Qwen2.5-0.5B-Instruct": (0.494, None),
    "Qwen/Qwen2.5-1.5B-Instruct": (1.54, None),
    "Qwen/Qwen2.5-3B-Instruct": (3.09, None),
    "Qwen/Qwen2.5-7B-Instruct": (7.62, None),
    "Qwen/Qwen2.5-14B-Instruct": (14.77, None),
    "Qwen/Qwen2.5-32B-Instruct": (32.76, None),
    "Qwen/Qwen2.5-72B-Instruct": (72.71, None),
    "Qwen/Qwen3-0.6B": (0.596, None),
    "Qwen/Qwen3-1.7B": (1.72, None),
    "Qwen/Qwen3-4B": (4.02, None),
    "Qwen/Qwen3-8B": (8.19, None),
    "Qwen/Qwen3-14B": (14.77, None),
    "Qwen/Qwen3-32B": (32.76, None),
    "Qwen/Qwen3-30B-A3B": (30.53, 3.35),
    "Qwen/Qwen3-235B-A22B": (235.09, 22.19),
    "deepseek-ai/DeepSeek-V3": (671.03, 37.55),
    "deepseek-ai/DeepSeek-R1": (671.03, 37.55),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (1.78, None),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": (7.62, None),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": (14.77, None),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": (32.76, None),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": (8.03, None),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": (70.55, None),
    "mistralai/Mistral-7B-Instruct-v0.3": (7.25, None),
    "mistralai/Mistral-Small-24B-Instruct-2501": (23.57, None),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": (46.70, 12.88),
    "mistralai/Mixtral-8x22B-Instruct-v0.1": (140.62, 39.15),
    "google/gemma-2-2b-it": (2.61, None),
    "google/gemma-2-9b-it": (9.24, None),
    "google/gemma-2-27b-it": (27.23, None),
    "google/gemma-3-1b-it": (1.00, None),
    "google/gemma-3-4b-it": (4.30, None),
    "google/gemma-3-12b-it": (12.19, None),
    "google/gemma-3-27b-it": (27.43, None),
    # The published active counts, 3.61 and 5.13, leave the input embedding of 0.58 out.
    "openai/gpt-oss-20b": (20.91, 3.61 + 0.58),
    "openai/gpt-oss-120b": (116.83, 5.13 + 0.58),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (0.1345, None),
    "microsoft/phi-4": (14.66, None),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (108.6, 17.17 + 1.03),
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": (400.7, 17.17 + 1.03),
    "moonshotai/Kimi-K2-Instruct": (1026.0, 32.9),
    # Published active counts are rounded and leave the embedding out, MiniMax's both vocabulary matrices.
    "MiniMaxAI/MiniMax-M2.5": (228.7, 10.0 + 1.23),
    "Qwen/Qwen3.5-397B-A17B": (397.0, 17.0),
    "zai-org/GLM-5": (744.0, 40.0 + 0.95),
}


@pytest.mark.parametrize("repo", PUBLISHED)
def test_parameters_computed_from_the_shape_match_the_published_count(repo: str) -> None:
    total, active = PUBLISHED[repo]
    facts = model_facts(repo)
    assert facts.params_total == pytest.approx(total * 1e9, rel=0.02)
    assert facts.params_active == pytest.approx((active or total) * 1e9, rel=0.02)


def test_every_entry_has_sane_facts() -> None:
    for repo in MODELS:
        facts = model_facts(repo)
        assert facts.name == repo
        assert facts.heads % facts.kv_heads == 0
        assert facts.context_window >= 4096
        assert facts.window_layers + facts.linear_layers <= facts.layers


def test_cache_bytes_follow_the_attention() -> None:
    assert model_facts("meta-llama/Llama-3.1-8B").kv_bytes_per_token() == 2 * 32 * 8 * 128 * 2
    assert model_facts("meta-llama/Llama-3.1-8B").kv_bytes_per_token("fp8") == 2 * 32 * 8 * 128
    # A latent of 512 and a rotary key of 64 per layer, however many heads.
    assert model_facts("deepseek-ai/DeepSeek-V3").kv_bytes_per_token() == 61 * 576 * 2


def test_weight_bytes_keep_the_vocabulary_in_16_bits() -> None:
    facts = model_facts("meta-llama/Llama-3.1-8B")
    vocabulary = 2 * 128256 * 4096
    assert facts.weights_bytes("bf16") == 2.0 * facts.params_total
    assert facts.weights_bytes("fp8") == facts.params_total + vocabulary
    assert facts.weights_bytes("int4") == pytest.approx(
        (facts.params_total - vocabulary) * (4 + 20 / 128) / 8 + 2 * vocabulary
    )
    with pytest.raises(InputError, match="use bf16, fp16, fp8, int8, int4"):
        facts.weights_bytes("fp7")


def test_windows_and_capabilities() -> None:
    gemma = model_facts("google/gemma-3-27b-it")
    assert (gemma.sliding_window, gemma.window_layers) == (1024, 52)
    assert "images" in gemma.capabilities
    oss = model_facts("openai/gpt-oss-20b")
    assert (oss.sliding_window, oss.window_layers) == (128, 12)
    assert "tools" in model_facts("meta-llama/Llama-3.1-8B-Instruct").capabilities
    assert "tools" not in model_facts("meta-llama/Meta-Llama-3-8B-Instruct").capabilities


def test_names_in_any_case_and_suggestions() -> None:
    assert model_facts("META-LLAMA/llama-3.1-8b-instruct").name == "meta-llama/Llama-3.1-8B-Instruct"
    with pytest.raises(InputError, match=r"meta-llama/Llama-3\.1-8B-Instruct"):
        model_facts("meta-llama/Llama-3.1-8B-Instrct")
    assert gpu_facts("h100-sxm-80gb").name == "H100-SXM-80GB"
    with pytest.raises(InputError, match="H100-SXM-80GB"):
        gpu_facts("H100")
    with pytest.raises(InputError, match="MI300X-192GB"):
        gpu_facts("zzz")


def test_gpu_facts_are_in_si_units() -> None:
    for gpu in GPUS.values():
        assert 20e9 < gpu.memory_bytes < 300e9
        assert 2e11 < gpu.memory_bandwidth < 1e13
        assert 1e14 < gpu.bf16_flops < 1e16
        assert gpu.fp8_flops == 0 or gpu.fp8_flops >= 1.9 * gpu.bf16_flops
        assert gpu.network_bandwidth <= gpu.link_bandwidth
        assert gpu.source


def test_config_of_a_multimodal_mixture() -> None:
    facts = facts_from_config(
        {
            "text_config": {
                "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 128,
                "vocab_size": 1000, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                "decoder_sparse_step": 2, "shared_expert_intermediate_size": 16,
            },
            "vision_config": {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 64},
        },
        "mine",
    )  # fmt: skip
    assert facts.moe_layers == 3
    assert facts.head_dim == 16
    attention, dense = 4 * 64 * 64, 3 * 64 * 128
    mixture = 8 * 3 * 64 * 32 + 3 * 64 * 16 + 64 * 8
    vision = 2 * (4 * 16 * 16 + 2 * 16 * 64)
    assert facts.params_total == 2 * 64_000 + 6 * attention + 3 * dense + 3 * mixture + vision
    assert facts.params_total - facts.params_active == 3 * 6 * 3 * 64 * 32
    assert facts.capabilities == ("images", "json-schema")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size: is missing"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers: must be a whole number of at least 1, not 'many'"),
        ({"num_attention_heads": 7}, "head_dim: is missing; hidden_size 64 is no multiple of 7 heads"),
        ({"vocab_size": -5}, "vocab_size: must be a whole number"),
        ({"num_experts": 4, "num_experts_per_tok": 9}, "num_experts_per_tok: is 9, but there are 4 experts"),
        ({"kv_lora_rank": 16}, "v_head_dim: is missing"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: is 3, which does not divide 4 heads"),
        ({"num_key_value_heads": 8}, "num_key_value_heads: is 8, which does not divide 4 heads"),
        ({"hidden_size": 10**30}, "hidden_size: must be a whole number of at least 1, it is larger than any model's"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder: is true: only decoders can be planned"),
    ],
)
def test_wrong_configurations_name_the_field(change: dict[str, object], message: str) -> None:
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as caught:
        facts_from_config({**config, **change})
    assert caught.value.exit_code == 2


CONFIG = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 100,
    "intermediate_size": 128, "max_position_embeddings": 4096,
}  # fmt: skip
UNKNOWN = "the architecture %s is not known: taken for a decoder with gated feed-forward layers"


@pytest.mark.parametrize(
    ("change", "assumed"),
    [
        ({"model_type": "llama"}, []),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, []),
        ({"architectures": ["FooForCausalLM"], "model_type": "foo"}, [UNKNOWN % "FooForCausalLM"]),
        ({}, ["its configuration names no architecture: taken for a decoder with gated feed-forward layers"]),
        (
            {"model_type": "bamba", "layer_types": ["mamba"] * 3 + ["full_attention"]},
            [UNKNOWN % "bamba", "3 of its 4 layers are mamba: counted as full attention"],
        ),
        (
            {"model_type": "jamba", "attn_layer_period": 8},
            [UNKNOWN % "jamba", "it has layers of other kinds (attn_layer_period): all are counted as full attention"],
        ),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "hqq", "bits": {}}},
            ["its quantisation (hqq) is not known: taken for bf16"],
        ),
        ({"model_type": "llama", "quantization_config": {"quant_method": "awq", "bits": 4}}, []),
        ({"model_type": "llama", "quantization_config": {"load_in_4bit": True}}, []),
        (
            {"model_type": "llama", "intermediate_size": None, "max_position_embeddings": None},
            [
                "its feed-forward width is not given: taken to be 256",
                "its context window is not given: taken to be 8,192",
            ],
        ),
    ],
)
def test_what_a_configuration_leaves_open_is_said_and_makes_less_certain(
    change: dict[str, object], assumed: list[str]
) -> None:
    facts, source, h100 = facts_from_config(CONFIG | change), Roofline(), gpu_facts("H100-SXM-80GB")
    assert list(facts.assumed) == assumed
    assert list(source.extrapolations(facts, h100, Shape())) == assumed
    known = source.uncertainty_percent(model_facts("meta-llama/Llama-3.1-8B"), h100, Shape())
    assert (source.uncertainty_percent(facts, h100, Shape()) > known) == bool(assumed)
    assert MeasuredTables().extrapolations(facts, h100, Shape()) == facts.assumed


def test_dense_models_whose_attention_was_measured_on_mixtures_only_are_extrapolated() -> None:
    said = Roofline().extrapolations(model_facts("google/gemma-3-27b-it"), gpu_facts("H100-SXM-80GB"), Shape())
    assert said == ("no measured dense model with windowed attention, as google/gemma-3-27b-it is",)
    assert not Roofline().extrapolations(model_facts("openai/gpt-oss-120b"), gpu_facts("H100-SXM-80GB"), Shape())


@pytest.mark.parametrize(
    ("change", "kv_heads"),
    [
        ({"num_kv_heads": 2, "new_decoder_architecture": True, "multi_query": True}, 2),  # Falcon 40B
        ({"multi_query": True}, 1),  # Falcon 7B
        ({"multi_query_group_num": 2}, 2),  # GLM
    ],
)
def test_key_value_heads_by_other_names(change: dict[str, object], kv_heads: int) -> None:
    assert facts_from_config(CONFIG | change).kv_heads == kv_heads


def test_a_gpu_from_five_numbers() -> None:
    known = gpu_facts("H100-SXM-80GB")
    given = custom_gpu(
        "mine", memory_gigabytes=85.5, memory_gigabytes_per_second=3350, bf16_teraflops=989.4, fp8_teraflops=1978.9,
        link_gigabytes_per_second=450,
    )  # fmt: skip
    for name in ("memory_bandwidth", "bf16_flops", "fp8_flops", "int8_flops", "link_bandwidth"):
        assert getattr(given, name) == pytest.approx(getattr(known, name))
    assert given.memory_bytes == pytest.approx(known.memory_bytes, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"memory_gigabytes": 0}, "memoryGigabytes: is 0, and must lie between 1 and 4,096: is it in another unit?"),
        ({"memory_gigabytes": 98304}, "memoryGigabytes: is 98304"),  # MiB
        (
            {"memory_gigabytes_per_second": 3.35},
            "memoryGigabytesPerSecond: is 3.35, and must lie between 20 and",
        ),  # TB/s
        ({"bf16_teraflops": float("nan")}, "bf16Teraflops: is nan"),
        ({"bf16_teraflops": 2.25}, "bf16Teraflops: is 2.25"),  # petaflops
        ({"fp8_teraflops": -1}, "fp8Teraflops: is -1, and must be 0 or lie between 5 and"),
        ({"link_gigabytes_per_second": 1e308}, "linkGigabytesPerSecond: is 1e+308"),
    ],
)
def test_numbers_that_no_gpu_has_are_refused(change: dict[str, float], said: str) -> None:
    numbers = {
        "memory_gigabytes": 96.0, "memory_gigabytes_per_second": 4000.0, "bf16_teraflops": 148.0, "fp8_teraflops": 0.0,
        "link_gigabytes_per_second": 450.0,
    }  # fmt: skip
    assert custom_gpu("mine", **numbers).fp8_flops == 0
    with pytest.raises(InputError) as caught:
        custom_gpu("mine", **numbers | change)
    assert str(caught.value).startswith(said)


def test_attention_of_some_quantised_checkpoints_stays_wide() -> None:
    for repo, precision, bits in (
        ("openai/gpt-oss-120b", "fp4", 16.0),
        ("deepseek-ai/DeepSeek-R1", "fp4", 16.0),
        ("deepseek-ai/DeepSeek-R1", "fp8", 8.0),
        ("moonshotai/Kimi-K2.5", "int4", 16.0),
        ("meta-llama/Llama-3.1-70B", "fp4", 4.5),
    ):
        assert model_facts(repo).attention_bits(precision) == bits
    # As the files on Hugging Face: 65 GB and 595 GB.
    assert model_facts("openai/gpt-oss-120b").weights_bytes("fp4") == pytest.approx(65e9, rel=0.06)
    assert model_facts("moonshotai/Kimi-K2.5").weights_bytes("int4") == pytest.approx(595e9, rel=0.1)
