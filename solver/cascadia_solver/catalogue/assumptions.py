"""What a model's configuration leaves open, or what it says that is not known here: stated, never guessed silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = ["assumptions"]

_KNOWN = frozenset(
    {
        "deepseekv2", "deepseekv3", "deepseekv32", "gemma2", "gemma3", "gemma3text", "glmmoedsa", "gptoss",
        "kimik2", "kimik25", "llama", "llama4", "llama4text", "minimaxm2", "mistral", "mistral3", "mixtral", "phi3",
        "qwen2", "qwen2moe", "qwen2vl", "qwen25vl", "qwen3", "qwen3moe", "qwen3next", "qwen3vl", "qwen3vlmoe",
        "qwen35", "qwen35text", "qwen35moe", "qwen35moetext",
    }
)  # fmt: skip
"""Architectures whose configurations mean what is read from them, as lower-case letters and digits."""
_ATTENTION = frozenset({"attention", "chunked_attention", "full_attention", "linear_attention", "sliding_attention"})
_OTHER_LAYERS = (
    "attn_layer_period",
    "block_configs",
    "hybrid_override_pattern",
    "ssm_cfg",
    "state_size",
    "mamba_d_state",
)
"""Fields of architectures that have layers without attention, or whose layers differ."""


def assumptions(
    config: Mapping[str, Any], text: Mapping[str, Any], precision: str, layers: int, missing: Mapping[str, int]
) -> tuple[str, ...]:
    """Say what a model is taken for.

    Args:
        config: Its whole configuration.
        text: The fields of its text decoder.
        precision: Of its weights, as far as it could be read.
        layers: How many layers it has.
        missing: What the configuration does not say, and what it is taken to be.

    Returns:
        Sentences; none for an architecture that is known and all there.
    """
    said = []
    names = _names(config) + _names(text)
    if not names:
        said.append("its configuration names no architecture: taken for a decoder with gated feed-forward layers")
    elif not {_plain(name) for name in names} & _KNOWN:
        said.append(f"the architecture {names[0]} is not known: taken for a decoder with gated feed-forward layers")
    kinds = text.get("layer_types")
    other = Counter(map(str, kinds[:layers])) if isinstance(kinds, list) else Counter[str]()
    said += [
        f"{count} of its {layers} layers are {kind[:40]}: counted as full attention"
        for kind, count in other.items()
        if kind not in _ATTENTION
    ]
    field = next((field for field in _OTHER_LAYERS if text.get(field) is not None), None)
    if field is not None:
        said.append(f"it has layers of other kinds ({field}): all are counted as full attention")
    quantisation = text.get("quantization_config")
    if precision == "bf16" and isinstance(quantisation, Mapping) and quantisation:
        said.append(f"its quantisation ({str(quantisation.get('quant_method'))[:40]}) is not known: taken for bf16")
    said += [f"its {what} is not given: taken to be {value:,}" for what, value in missing.items()]
    return tuple(said)


def _names(config: Mapping[str, Any]) -> list[str]:
    """Architecture and type of a model, as far as they are texts."""
    listed = config.get("architectures")
    named = [*(listed if isinstance(listed, list) else []), config.get("model_type")]
    return [name for name in named if isinstance(name, str) and name]


def _plain(name: str) -> str:
    """``Qwen3MoeForCausalLM`` and ``qwen3_moe`` alike as ``qwen3moe``."""
    return "".join(letter for letter in name.split("For", 1)[0].casefold() if letter.isalnum())
