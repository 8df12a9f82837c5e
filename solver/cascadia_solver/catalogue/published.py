"""Configurations of published models: the fields of ``config.json`` that size and cost follow from.

Copied from the models' repositories on Hugging Face. Checked by computing the parameter count from
these shapes and comparing it with the published one (see the tests).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["MODELS", "Published"]


class Published(NamedTuple):
    """One catalogue entry.

    Attributes:
        config: Fields as in ``config.json``.
        capabilities: What the published chat template and weights support beyond text.
    """

    config: Mapping[str, Any]
    capabilities: tuple[str, ...] = ()


_TOOLS = ("tools",)


def _dense(
    hidden: int, layers: int, heads: int, kv_heads: int, inter: int, vocab: int, context: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inter,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        **more,
    }


# What the checkpoints' quantization_config says: the precision, and that some keep the attention in 16 bits.
_FP8 = {"quantization_config": {"quant_method": "fp8"}}
_NVFP4 = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
_MXFP4 = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["self_attn"]}}
_INT4 = {"quantization_config": {"bits": 4, "modules_to_not_convert": ["self_attn"]}}
_TIED = {"tie_word_embeddings": True}

_LLAMA_8B = (4096, 32, 32, 8, 14336, 128256)
_LLAMA_70B = (8192, 80, 64, 8, 28672, 128256)
_LLAMA_405B = (16384, 126, 128, 8, 53248, 128256)

_QWEN25_7B = (3584, 28, 28, 4, 18944, 152064)
_QWEN25_14B = (5120, 48, 40, 8, 13824, 152064)
_QWEN25_32B = (5120, 64, 40, 8, 27648, 152064)

_DEEPSEEK_V3 = _dense(
    7168, 61, 128, 128, 18432, 129280, 163840,
    n_routed_experts=256, num_experts_per_tok=8, n_shared_experts=1, moe_intermediate_size=2048,
    first_k_dense_replace=3, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
    v_head_dim=128,
)  # fmt: skip
_LLAMA4_VISION = {"hidden_size": 1408, "intermediate_size": 5632, "num_hidden_layers": 34}
_GEMMA3_VISION = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}


def _qwen3_moe(hidden: int, layers: int, heads: int, width: int) -> dict[str, Any]:
    return _dense(
        hidden, layers, heads, 4, 3 * hidden, 151936, 40960,
        head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=width,
    )  # fmt: skip


def _gemma2(hidden: int, layers: int, heads: int, kv_heads: int, inter: int, head_dim: int) -> dict[str, Any]:
    return _dense(
        hidden,
        layers,
        heads,
        kv_heads,
        inter,
        256000,
        8192,
        model_type="gemma2",
        head_dim=head_dim,
        sliding_window=4096,
    )


def _gemma3(hidden: int, layers: int, heads: int, kv_heads: int, inter: int, head_dim: int) -> dict[str, Any]:
    text = _dense(
        hidden, layers, heads, kv_heads, inter, 262208, 131072,
        model_type="gemma3_text", head_dim=head_dim, sliding_window=1024, sliding_window_pattern=6,
    )  # fmt: skip
    return {"text_config": text, "vision_config": _GEMMA3_VISION}


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return _dense(
        2880, layers, 64, 8, 2880, 201088, 131072,
        head_dim=64, num_local_experts=experts, num_experts_per_tok=4, sliding_window=128, **_MXFP4,
        layer_types=["sliding_attention", "full_attention"] * (layers // 2),
    )  # fmt: skip


def _kimi_k2(context: int, **more: Any) -> dict[str, Any]:
    return _dense(
        7168, 61, 64, 64, 18432, 163840, context,
        n_routed_experts=384, num_experts_per_tok=8, n_shared_experts=1, moe_intermediate_size=2048,
        first_k_dense_replace=1, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128, **more,
    )  # fmt: skip


def _llama4(experts: int, every: int, context: int) -> dict[str, Any]:
    text = _dense(
        5120, 48, 40, 8, 8192, 202048, context,
        model_type="llama4_text", head_dim=128, num_local_experts=experts, num_experts_per_tok=1,
        interleave_moe_layer_step=every, intermediate_size_mlp=16384, attention_chunk_size=8192,
    )  # fmt: skip
    return {"text_config": text, "vision_config": _LLAMA4_VISION}


def _recent_mixtures() -> dict[str, Published]:
    """Mixtures of 2025 and 2026: Llama 4, Kimi K2, MiniMax M2, Qwen 3.5 and GLM 5."""
    minimax = _dense(
        3072, 62, 48, 8, 1536, 200064, 196608, head_dim=128, num_local_experts=256, num_experts_per_tok=8, **_FP8
    )
    qwen35 = _dense(
        4096, 60, 32, 2, 4096, 248320, 262144,
        head_dim=256, num_experts=512, num_experts_per_tok=10, moe_intermediate_size=1024,
        shared_expert_intermediate_size=1024, attn_output_gate=True,
        layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 15,
        linear_num_key_heads=16, linear_key_head_dim=128, linear_num_value_heads=64, linear_value_head_dim=128,
    )  # fmt: skip
    glm5 = _dense(
        6144, 78, 64, 64, 12288, 154880, 202752,
        n_routed_experts=256, num_experts_per_tok=8, n_shared_experts=1, moe_intermediate_size=2048,
        first_k_dense_replace=3, q_lora_rank=2048, kv_lora_rank=512, qk_nope_head_dim=192, qk_rope_head_dim=64,
        v_head_dim=256, index_topk=2048,
    )  # fmt: skip
    names = {
        "meta-llama/Llama-4-Scout-17B-16E-Instruct": _llama4(16, 1, 10485760),
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct": _llama4(128, 2, 1048576),
        "moonshotai/Kimi-K2-Instruct": _kimi_k2(131072, **_FP8),
        "moonshotai/Kimi-K2.5": _kimi_k2(262144, **_INT4),
        "MiniMaxAI/MiniMax-M2": minimax,
        "MiniMaxAI/MiniMax-M2.5": minimax,
        "Qwen/Qwen3.5-397B-A17B": qwen35,
        "zai-org/GLM-5": glm5,
    }
    return {name: Published(config, _TOOLS) for name, config in names.items()}


def _nvfp4(qwen3: Mapping[str, dict[str, Any]]) -> dict[str, Published]:
    """NVIDIA's 4-bit floating-point checkpoints, for GPUs with such arithmetic."""
    configs = {
        "Llama-3.1-8B-Instruct": (_dense(*_LLAMA_8B, 131072), _TOOLS),
        "Llama-3.1-405B-Instruct": (_dense(*_LLAMA_405B, 131072), _TOOLS),
        "Llama-3.3-70B-Instruct": (_dense(*_LLAMA_70B, 131072), _TOOLS),
        "DeepSeek-V3-0324": (_DEEPSEEK_V3, _TOOLS),
        "DeepSeek-R1": (_DEEPSEEK_V3, ()),
        "DeepSeek-R1-0528": (_DEEPSEEK_V3, ()),
        **{f"Qwen3-{size}": (qwen3[size], _TOOLS) for size in ("8B", "14B", "32B", "30B-A3B", "235B-A22B")},
    }
    # The repositories have been renamed once; both names work.
    return {
        f"nvidia/{name}-{suffix}": Published(config | _NVFP4, able)
        for name, (config, able) in configs.items()
        for suffix in ("FP4", "NVFP4")
    }


def _named(names: Iterable[str], config: Mapping[str, Any], capabilities: tuple[str, ...]) -> dict[str, Published]:
    return {name: Published(config, capabilities) for name in names}


def _catalogue() -> dict[str, Published]:
    models: dict[str, Published] = {}

    for size, shape in (("8B", _LLAMA_8B), ("70B", _LLAMA_70B), ("405B", _LLAMA_405B)):
        # The repositories have been renamed once; both names work.
        repos = [f"meta-llama/{prefix}-3.1-{size}{suffix}"
                 for prefix in ("Llama", "Meta-Llama") for suffix in ("", "-Instruct")]  # fmt: skip
        models |= _named(repos, _dense(*shape, 131072), _TOOLS)
    for size, shape in (("8B", _LLAMA_8B), ("70B", _LLAMA_70B)):
        repos = [f"meta-llama/{prefix}-3-{size}{suffix}"
                 for prefix in ("Llama", "Meta-Llama") for suffix in ("", "-Instruct")]  # fmt: skip
        models |= _named(repos, _dense(*shape, 8192), ())
    models |= _named(["meta-llama/Llama-3.3-70B-Instruct"], _dense(*_LLAMA_70B, 131072), _TOOLS)
    llama2 = {
        "7b": (4096, 32, 32, 32, 11008, 32000),
        "13b": (5120, 40, 40, 40, 13824, 32000),
        "70b": (8192, 80, 64, 8, 28672, 32000),
    }
    for size, shape in llama2.items():
        models |= _named([f"meta-llama/Llama-2-{size}{chat}-hf" for chat in ("", "-chat")], _dense(*shape, 4096), ())
    models |= _named(["codellama/CodeLlama-34b-Instruct-hf"], _dense(8192, 48, 64, 8, 22016, 32000, 16384), ())

    qwen25 = {
        "0.5B": _dense(896, 24, 14, 2, 4864, 151936, 32768, **_TIED),
        "1.5B": _dense(1536, 28, 12, 2, 8960, 151936, 32768, **_TIED),
        "3B": _dense(2048, 36, 16, 2, 11008, 151936, 32768, **_TIED),
        "7B": _dense(*_QWEN25_7B, 32768),
        "14B": _dense(*_QWEN25_14B, 32768),
        "32B": _dense(*_QWEN25_32B, 32768),
        "72B": _dense(8192, 80, 64, 8, 29568, 152064, 32768),
    }
    for size, config in qwen25.items():
        models |= _named([f"Qwen/Qwen2.5-{size}{suffix}" for suffix in ("", "-Instruct")], config, _TOOLS)

    qwen3 = {
        "0.6B": _dense(1024, 28, 16, 8, 3072, 151936, 40960, head_dim=128, **_TIED),
        "1.7B": _dense(2048, 28, 16, 8, 6144, 151936, 40960, head_dim=128, **_TIED),
        "4B": _dense(2560, 36, 32, 8, 9728, 151936, 40960, head_dim=128, **_TIED),
        "8B": _dense(4096, 36, 32, 8, 12288, 151936, 40960, head_dim=128),
        "14B": _dense(5120, 40, 40, 8, 17408, 151936, 40960, head_dim=128),
        "32B": _dense(5120, 64, 64, 8, 25600, 151936, 40960, head_dim=128),
        "30B-A3B": _qwen3_moe(2048, 48, 32, 768),
        "235B-A22B": _qwen3_moe(4096, 94, 64, 1536),
    }
    for size, config in qwen3.items():
        models |= _named([f"Qwen/Qwen3-{size}"], config, _TOOLS)
        models |= _named([f"Qwen/Qwen3-{size}-FP8"], config | _FP8, _TOOLS)

    deepseek = _DEEPSEEK_V3 | _FP8
    models |= _named(["deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3-0324"], deepseek, _TOOLS)
    models |= _named(["deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-R1-0528"], deepseek, ())
    models |= _nvfp4(qwen3)
    distills = {
        "Qwen-1.5B": _dense(1536, 28, 12, 2, 8960, 151936, 131072),
        "Qwen-7B": _dense(*_QWEN25_7B, 131072),
        "Qwen-14B": _dense(*_QWEN25_14B, 131072),
        "Qwen-32B": _dense(*_QWEN25_32B, 131072),
        "Llama-8B": _dense(*_LLAMA_8B, 131072),
        "Llama-70B": _dense(*_LLAMA_70B, 131072),
    }
    for size, config in distills.items():
        models |= _named([f"deepseek-ai/DeepSeek-R1-Distill-{size}"], config, ())

    models |= _named(["mistralai/Mistral-7B-Instruct-v0.3"], _dense(4096, 32, 32, 8, 14336, 32768, 32768), _TOOLS)
    models |= _named(
        ["mistralai/Mistral-Small-24B-Instruct-2501", "mistralai/Mistral-Small-24B-Base-2501"],
        _dense(5120, 40, 32, 8, 32768, 131072, 32768, head_dim=128),
        _TOOLS,
    )
    mixtral = {"num_local_experts": 8, "num_experts_per_tok": 2}
    models |= _named(
        ["mistralai/Mixtral-8x7B-Instruct-v0.1", "mistralai/Mixtral-8x7B-v0.1"],
        _dense(4096, 32, 32, 8, 14336, 32000, 32768, **mixtral),
        (),
    )
    models |= _named(
        ["mistralai/Mixtral-8x22B-Instruct-v0.1"], _dense(6144, 56, 48, 8, 16384, 32768, 65536, **mixtral), _TOOLS
    )

    models |= _named(["google/gemma-2-2b-it"], _gemma2(2304, 26, 8, 4, 9216, 256), ())
    models |= _named(["google/gemma-2-9b-it"], _gemma2(3584, 42, 16, 8, 14336, 256), ())
    models |= _named(["google/gemma-2-27b-it"], _gemma2(4608, 46, 32, 16, 36864, 128), ())
    gemma3_1b = _dense(
        1152, 26, 4, 1, 6912, 262144, 32768,
        model_type="gemma3_text", head_dim=256, sliding_window=512, sliding_window_pattern=6,
    )  # fmt: skip
    models |= _named(["google/gemma-3-1b-it"], gemma3_1b, ())
    models |= _named(["google/gemma-3-4b-it"], _gemma3(2560, 34, 8, 4, 10240, 256), ())
    models |= _named(["google/gemma-3-12b-it"], _gemma3(3840, 48, 16, 8, 15360, 256), ())
    models |= _named(["google/gemma-3-27b-it"], _gemma3(5376, 62, 32, 16, 21504, 128), ())

    models |= _named(["openai/gpt-oss-20b"], _gpt_oss(24, 32), _TOOLS)
    models |= _named(["openai/gpt-oss-120b"], _gpt_oss(36, 128), _TOOLS)
    models |= _named(["HuggingFaceTB/SmolLM2-135M-Instruct"], _dense(576, 30, 9, 3, 1536, 49152, 8192, **_TIED), ())
    models |= _named(["microsoft/phi-4"], _dense(5120, 40, 40, 10, 17920, 100352, 16384), ())
    models |= _recent_mixtures()
    return models


MODELS: dict[str, Published] = _catalogue()
"""Entries by repository."""
