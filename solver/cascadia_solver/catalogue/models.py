"""What a model's published configuration says about its size and its cost.

Facts come from the Hugging Face ``config.json``: built-in for the models in `published`, and by
`facts_from_config` for any other of the usual decoder shapes: dense, grouped-query attention,
mixture of experts, multi-head latent attention, sliding windows, text part of multimodal models.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from cascadia_api.errors import InputError, Problem
from cascadia_solver.catalogue.published import MODELS

__all__ = ["PRECISION_BITS", "ModelFacts", "facts_from_config", "model_facts"]

# Bits of one stored weight. int4 is AWQ/GPTQ with groups of 128: a 16-bit scale and a 4-bit zero a group;
# fp4 is NVFP4 with groups of 16 and an 8-bit scale each (MXFP4's groups of 32 are a quarter bit less).
PRECISION_BITS: dict[str, float] = {
    "bf16": 16.0,
    "fp16": 16.0,
    "fp8": 8.0,
    "int8": 8.0,
    "int4": 4.0 + 20.0 / 128.0,
    "fp4": 4.5,
}

_EMBEDDING_BITS = 16.0
"""Checkpoints of every precision keep embeddings and output projection in 16 bits."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Shape of a decoder-only transformer.

    Parameter counts are computed from the shape (matrices only: norms and biases are under 0.1 %).

    Attributes:
        name: Repository, or what the caller named it.
        layers: Transformer layers.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key-value heads (equal to `heads` without grouped queries).
        head_dim: Width of one head.
        intermediate: Width of the dense feed-forward layers (gated: three matrices).
        vocab: Vocabulary size.
        tied_embeddings: Whether the output projection is the embedding.
        context_window: Most tokens of prompt and answer together.
        moe_layers: Layers whose feed-forward part is a mixture of experts; 0 for dense models.
        experts: Routed experts of such a layer.
        experts_per_token: Routed experts that each token uses.
        expert_intermediate: Width of one routed expert.
        shared_intermediate: Width of the experts that every token uses, summed.
        q_lora_rank: Latent attention: rank of the query projection; 0 if it is not factored.
        kv_lora_rank: Latent attention: width of the cached latent; 0 for ordinary attention.
        rope_dim: Latent attention: width of the cached rotary key.
        nope_dim: Latent attention: width of a query head's part without rotation.
        value_dim: Latent attention: width of a value head.
        sliding_window: Positions that the windowed layers attend to; 0 if there are none.
        window_layers: Number of windowed layers.
        extra_params: Parameters outside the text decoder (a vision tower).
        capabilities: ``tools``, ``images``, ``audio``, ``json-schema``.
        linear_layers: Layers with linear attention: a state of fixed size instead of a cache.
        linear_params: Parameters of one such layer's attention.
        linear_state_bytes: Bytes of one request's state in one such layer.
        attention_in_16_bits: Whether quantised checkpoints keep the attention in 16 bits.
        native_precision: Of the published weights.
        fp4_anywhere: Whether its 4-bit weights are also served by GPUs without such arithmetic (MXFP4).
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied_embeddings: bool
    context_window: int
    moe_layers: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    rope_dim: int = 0
    nope_dim: int = 0
    value_dim: int = 0
    sliding_window: int = 0
    window_layers: int = 0
    extra_params: int = 0
    capabilities: tuple[str, ...] = ()
    linear_layers: int = 0
    linear_params: int = 0
    linear_state_bytes: int = 0
    attention_in_16_bits: bool = False
    native_precision: str = "bf16"
    fp4_anywhere: bool = False

    @property
    def latent_attention(self) -> bool:
        """Whether keys and values are cached as one latent vector (MLA)."""
        return self.kv_lora_rank > 0

    @property
    def embedding_params(self) -> int:
        """Parameters of one vocabulary matrix."""
        return self.vocab * self.hidden

    @property
    def attention_params(self) -> int:
        """Parameters of one layer's attention."""
        if not self.latent_attention:
            return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        query_width = self.heads * (self.nope_dim + self.rope_dim)
        query = self.q_lora_rank * (self.hidden + query_width) if self.q_lora_rank else self.hidden * query_width
        latent = self.hidden * (self.kv_lora_rank + self.rope_dim)
        expand = self.kv_lora_rank * self.heads * (self.nope_dim + self.value_dim)
        return query + latent + expand + self.heads * self.value_dim * self.hidden

    @property
    def cached_layers(self) -> int:
        """Layers that cache keys and values, all but those with linear attention."""
        return self.layers - self.linear_layers

    @property
    def replicated_params(self) -> int:
        """Parameters of all layers that every rank holds whole: the projections down to the latents."""
        if not self.latent_attention:
            return 0
        return self.layers * self.hidden * (self.q_lora_rank + self.kv_lora_rank + self.rope_dim)

    @property
    def all_attention_params(self) -> int:
        """Parameters of all layers' attention."""
        return self.cached_layers * self.attention_params + self.linear_layers * self.linear_params

    @property
    def routed_params(self) -> int:
        """Parameters of all routed experts of all layers."""
        return self.moe_layers * self.experts * 3 * self.hidden * self.expert_intermediate

    @property
    def common_params(self) -> int:
        """Parameters of all layers that every token passes: attention, dense and shared parts, routers."""
        dense = (self.layers - self.moe_layers) * 3 * self.hidden * self.intermediate
        shared = self.moe_layers * (3 * self.hidden * self.shared_intermediate + self.hidden * self.experts)
        return self.all_attention_params + dense + shared

    @property
    def params_total(self) -> int:
        """All parameters."""
        vocabulary = self.embedding_params * (1 if self.tied_embeddings else 2)
        return vocabulary + self.common_params + self.routed_params + self.extra_params

    @property
    def params_active(self) -> int:
        """Parameters that one token uses, embeddings included."""
        unused = self.routed_params * (self.experts - self.experts_per_token) // self.experts if self.experts else 0
        return self.params_total - unused

    def weights_bytes(self, precision: str) -> float:
        """Bytes of the weights, embeddings and vision tower kept in 16 bits.

        Raises:
            InputError: If the precision is unknown.
        """
        vocabulary = self.embedding_params * (1 if self.tied_embeddings else 2)
        routed = self.routed_params * weight_bits(precision) / 8.0
        return self.common_bytes(precision) + routed + (vocabulary + self.extra_params) * _EMBEDDING_BITS / 8.0

    def common_bytes(self, precision: str) -> float:
        """Bytes of the weights that every token passes in all layers: `common_params`."""
        attention = self.all_attention_params
        rest = self.common_params - attention
        return (attention * self.attention_bits(precision) + rest * weight_bits(precision)) / 8.0

    def attention_bits(self, precision: str) -> float:
        """Bits of one weight of the attention.

        Published four-bit floating-point checkpoints of mixtures keep it in 16 bits, and so do those whose
        configuration says so.
        """
        kept = self.attention_in_16_bits or (precision == "fp4" and self.moe_layers > 0)
        return _EMBEDDING_BITS if kept else weight_bits(precision)

    def kv_bytes_per_token(self, kv_precision: str = "bf16") -> float:
        """Bytes of key-value cache per token, over all layers, on one rank that holds all heads."""
        per_layer = self.kv_lora_rank + self.rope_dim if self.latent_attention else 2 * self.kv_heads * self.head_dim
        return self.cached_layers * per_layer * kv_bits(kv_precision) / 8.0


def weight_bits(precision: str) -> float:
    """Bits per weight; InputError names the precisions there are."""
    if precision not in PRECISION_BITS:
        raise InputError(Problem("precision", f"{precision!r} is unknown; use {', '.join(PRECISION_BITS)}"))
    return PRECISION_BITS[precision]


def kv_bits(kv_precision: str) -> float:
    """Bits per cached number: bf16, fp16 or fp8."""
    if kv_precision not in {"bf16", "fp16", "fp8"}:
        raise InputError(Problem("kvPrecision", f"{kv_precision!r} is unknown; use bf16, fp16 or fp8"))
    return PRECISION_BITS[kv_precision]


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
            if isinstance(value, int) and not isinstance(value, bool) and value >= least:
                return value
            self.problems.append(Problem(name, f"must be a whole number of at least {least}, not {value!r}"))
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
    hidden = fields.whole("hidden_size", "n_embd", "d_model")
    layers = fields.whole("num_hidden_layers", "n_layer")
    heads = fields.whole("num_attention_heads", "n_head")
    if text.get("head_dim") is None and hidden % heads:
        fields.problems.append(Problem("head_dim", f"is missing; hidden_size {hidden} is no multiple of {heads} heads"))
    window, window_layers = _window(text, layers)
    facts = ModelFacts(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=fields.whole("num_key_value_heads", default=heads),
        head_dim=fields.whole("head_dim", default=max(1, hidden // heads)),
        intermediate=fields.whole("intermediate_size", "ffn_dim", default=4 * hidden),
        vocab=fields.whole("vocab_size"),
        tied_embeddings=bool(text.get("tie_word_embeddings", _ties_by_default(text))),
        context_window=fields.whole("max_position_embeddings", "n_positions", default=8192),
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
    return replace(facts, capabilities=tuple(sorted(able)))


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
    if bits in {4, 8}:
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
    return facts_from_config(entry.config, repo, capabilities=entry.capabilities)


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
