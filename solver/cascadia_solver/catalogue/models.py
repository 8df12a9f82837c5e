"""What a model's published configuration says about its size and its cost.

Facts come from the Hugging Face ``config.json``: built-in for the models in `published`, and by
`facts_from_config` for any other of the usual decoder shapes: dense, grouped-query attention,
mixture of experts, multi-head latent attention, sliding windows, text part of multimodal models.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from cascadia_api.errors import InputError, Problem
from cascadia_solver.catalogue.assumptions import assumptions
from cascadia_solver.catalogue.model_shape import PRECISION_BITS, ModelFacts
from cascadia_solver.catalogue.published import MODELS

__all__ = ["PRECISION_BITS", "ModelFacts", "facts_from_config", "model_facts"]

_WIDTH = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
_CONTEXT = ("max_position_embeddings", "n_positions", "seq_length", "max_sequence_length")
_LARGEST = 10**9
"""No figure of a configuration is larger."""


class _Fields:
    """Reads whole numbers from a configuration, and collects what is wrong with it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.problems: list[Problem] = []

    def whole(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """The first of the named fields that is there, else the default."""
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if isinstance(value, int) and not isinstance(value, bool) and least <= value <= _LARGEST:
                return value
            said = "it is larger than any model's" if isinstance(value, int) and value > _LARGEST else f"not {value!r}"
            self.problems.append(Problem(name, f"must be a whole number of at least {least}, {said}"))
            return least
        if default is None:
            self.problems.append(Problem(names[0], "is missing; give the model's own config.json from Hugging Face"))
            return least
        return default


def facts_from_config(
    config: Mapping[str, Any], name: str = "model", *, capabilities: Iterable[str] | None = None
) -> ModelFacts:
    """Read the facts from a Hugging Face ``config.json``.

    Args:
        config: The parsed file.
        name: What to call the model.
        capabilities: What it can do beyond text. A configuration shows images only; by default a
            model is taken to follow JSON schemas (the engine's grammar sees to that), and no tools.

    Raises:
        InputError: For each missing or senseless field, by name.
    """
    text: Mapping[str, Any] = config
    for part in ("text_config", "llm_config", "language_config"):
        nested = config.get(part)
        if isinstance(nested, Mapping):
            text = {**config, **nested}
            break
    fields = _Fields(text)
    if text.get("is_encoder_decoder") is True:
        raise InputError(Problem("is_encoder_decoder", "is true: only decoders can be planned"), source=name)
    hidden = fields.whole("hidden_size", "n_embd", "d_model")
    layers = fields.whole("num_hidden_layers", "n_layer", "num_layers")
    heads = fields.whole("num_attention_heads", "n_head")
    if text.get("head_dim") is None and hidden % heads and not fields.problems:
        fields.problems.append(Problem("head_dim", f"is missing; hidden_size {hidden} is no multiple of {heads} heads"))
    kv_heads = fields.whole("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", default=heads)
    if text.get("multi_query") is True and not text.get("new_decoder_architecture"):
        kv_heads = 1  # Falcon 7B, StarCoder
    if (kv_heads > heads or heads % kv_heads) and not fields.problems:
        fields.problems.append(Problem("num_key_value_heads", f"is {kv_heads}, which does not divide {heads} heads"))
    window, window_layers = _window(text, layers)
    facts = ModelFacts(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=fields.whole("head_dim", default=max(1, hidden // heads)),
        intermediate=fields.whole(*_WIDTH, default=4 * hidden),
        vocab=fields.whole("vocab_size", "padded_vocab_size"),
        tied_embeddings=bool(text.get("tie_word_embeddings", _ties_by_default(text))),
        context_window=fields.whole(*_CONTEXT, default=8192),
        extra_params=_vision_params(config.get("vision_config")),
        sliding_window=window,
        window_layers=window_layers,
        attention_in_16_bits=_keeps_attention(text),
        native_precision=_native_precision(text),
        fp4_anywhere="mxfp4" in str(text.get("quantization_config")).casefold(),
    )
    facts = _with_linear_attention(_with_latent_attention(_with_experts(facts, fields), fields), fields)
    if fields.problems:
        raise InputError(fields.problems, source=name)
    able = {"json-schema", *(capabilities or ())}
    if facts.extra_params:
        able.add("images")
    missing = {"feed-forward width": 4 * hidden} if all(text.get(field) is None for field in _WIDTH) else {}
    missing |= {"context window": 8192} if all(text.get(field) is None for field in _CONTEXT) else {}
    assumed = assumptions(config, text, facts.native_precision, layers, missing)
    return replace(facts, capabilities=tuple(sorted(able)), assumed=assumed)


def _with_experts(facts: ModelFacts, fields: _Fields) -> ModelFacts:
    experts = fields.whole("n_routed_experts", "num_local_experts", "num_experts", default=0, least=0)
    if experts == 0:
        return facts
    width = fields.whole("moe_intermediate_size", default=facts.intermediate)
    shared = fields.whole("n_shared_experts", default=0, least=0) * width
    if fields.config.get("model_type") == "llama4_text":
        # Each mixture has one shared expert; the layers between are dense and wider.
        shared = width
        facts = replace(facts, intermediate=fields.whole("intermediate_size_mlp", default=facts.intermediate))
    per_token = fields.whole("num_experts_per_tok", "experts_per_token")
    if per_token > experts:
        fields.problems.append(Problem("num_experts_per_tok", f"is {per_token}, but there are {experts} experts"))
    listed = fields.config.get("mlp_only_layers")
    return replace(
        facts,
        moe_layers=_moe_layers(
            facts.layers,
            dense_first=fields.whole("first_k_dense_replace", default=0, least=0),
            every=fields.whole("decoder_sparse_step", "interleave_moe_layer_step", default=1),
            dense=listed if isinstance(listed, list) else [],
        ),
        experts=experts,
        experts_per_token=per_token,
        expert_intermediate=width,
        shared_intermediate=fields.whole("shared_expert_intermediate_size", default=shared, least=0),
    )


def _with_latent_attention(facts: ModelFacts, fields: _Fields) -> ModelFacts:
    if not fields.config.get("kv_lora_rank"):
        return facts
    return replace(
        facts,
        q_lora_rank=fields.whole("q_lora_rank", default=0, least=0),
        kv_lora_rank=fields.whole("kv_lora_rank"),
        rope_dim=fields.whole("qk_rope_head_dim"),
        nope_dim=fields.whole("qk_nope_head_dim"),
        value_dim=fields.whole("v_head_dim"),
    )


def _with_linear_attention(facts: ModelFacts, fields: _Fields) -> ModelFacts:
    """Gated delta nets (Qwen 3.5, Qwen3-Next): most layers carry a state, every n-th one a cache."""
    kinds = fields.config.get("layer_types")
    linear = kinds[: facts.layers].count("linear_attention") if isinstance(kinds, list) else 0
    if linear == 0:
        return facts
    key = fields.whole("linear_num_key_heads") * fields.whole("linear_key_head_dim")
    value_heads = fields.whole("linear_num_value_heads")
    value = value_heads * fields.whole("linear_value_head_dim")
    state = value * fields.whole("linear_key_head_dim") * 4  # kept in 32 bits
    # Queries, keys, values and an output gate in, values out, and two gates per head.
    params = facts.hidden * (2 * key + 3 * value + 2 * value_heads)
    return replace(facts, linear_layers=linear, linear_params=params, linear_state_bytes=state)


def _keeps_attention(text: Mapping[str, Any]) -> bool:
    """Whether the configuration excepts the attention from quantisation (gpt-oss, Kimi K2.5)."""
    quantisation = text.get("quantization_config")
    if not isinstance(quantisation, Mapping):
        return False
    excepted = quantisation.get("modules_to_not_convert") or quantisation.get("ignore") or []
    return isinstance(excepted, list) and any("self_attn" in str(module) for module in excepted)


def _native_precision(text: Mapping[str, Any]) -> str:
    """Precision that the configuration says its weights are stored in; bf16 where it says nothing that is known."""
    quantisation = text.get("quantization_config")
    if not isinstance(quantisation, Mapping):
        return "bf16"
    said = f"{quantisation.get('quant_method', '')} {quantisation.get('quant_algo', '')}".casefold()
    if "fp4" in said:
        return "fp4"
    if "fp8" in said:
        return "fp8"
    kind, bits = None, quantisation.get("bits")
    groups = quantisation.get("config_groups")  # compressed-tensors
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            kind, bits = weights.get("type"), weights.get("num_bits")
    if quantisation.get("load_in_4bit") is True or quantisation.get("load_in_8bit") is True:  # bitsandbytes
        bits = 4 if quantisation.get("load_in_4bit") is True else 8
    if bits in (4, 8):
        return f"fp{bits}" if kind == "float" else f"int{bits}"
    return "bf16"


def _ties_by_default(text: Mapping[str, Any]) -> bool:
    """Gemma ties its embeddings and does not say so; most others default to untied."""
    return str(text.get("model_type", "")).startswith("gemma")


def _moe_layers(layers: int, *, dense_first: int, every: int, dense: list[Any]) -> int:
    """Layers with experts: not the first few (DeepSeek), nor those listed as dense (Qwen), or every n-th."""
    return sum(1 for layer in range(dense_first, layers) if (layer + 1) % every == 0 and layer not in dense)


def _window(text: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """Window length and number of windowed layers; (0, 0) where all layers attend to everything."""
    if isinstance(text.get("index_topk"), int):
        return text["index_topk"], layers  # sparse attention: an indexer picks so many positions
    if isinstance(text.get("attention_chunk_size"), int):
        return text["attention_chunk_size"], layers - layers // 4  # Llama 4: every fourth layer attends to all
    window = text.get("sliding_window")
    if not isinstance(window, int) or window <= 0 or text.get("use_sliding_window") is False:
        return 0, 0
    kinds = text.get("layer_types")
    if isinstance(kinds, list):
        return window, sum(1 for kind in kinds[:layers] if kind == "sliding_attention")
    pattern = text.get("sliding_window_pattern")
    if not isinstance(pattern, int):
        pattern = 2 if text.get("model_type") == "gemma2" else 1
    # Every pattern-th layer attends to everything; without a pattern all are windowed (Mistral 7B v0.1).
    return window, layers - layers // pattern if pattern > 1 else layers


def _vision_params(vision: Any) -> int:
    """Rough size of a vision tower: a plain transformer encoder."""
    if not isinstance(vision, Mapping):
        return 0
    width, inner, layers = (
        value if isinstance(value := vision.get(field), int) else 0
        for field in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    return layers * (4 * width * width + 2 * width * (inner or 4 * width))


@cache
def _by_folded() -> dict[str, str]:
    return {repo.casefold(): repo for repo in MODELS}


@cache
def _facts(repo: str) -> ModelFacts:
    entry = MODELS[repo]
    # What the published entries leave out is what their architecture has by default.
    return replace(facts_from_config(entry.config, repo, capabilities=entry.capabilities), assumed=())


def model_facts(repo: str) -> ModelFacts:
    """Look up a built-in model by its Hugging Face repository, in any case.

    Raises:
        InputError: If it is not built in; lists the nearest names.
    """
    known = _by_folded().get(repo.casefold())
    if known is not None:
        return _facts(known)
    nearest = difflib.get_close_matches(repo.casefold(), _by_folded(), n=3, cutoff=0.5)
    hint = f" (nearest: {', '.join(_by_folded()[near] for near in nearest)})" if nearest else ""
    raise InputError(f"model {repo!r} is not in the catalogue{hint}; for any other model give its config.json")
