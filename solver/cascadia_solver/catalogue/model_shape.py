"""The shape of a model: what its size and its cost follow from."""

from __future__ import annotations

from dataclasses import dataclass

from cascadia_api.errors import InputError, Problem

__all__ = ["PRECISION_BITS", "ModelFacts", "kv_bits", "weight_bits"]

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
        assumed: What its configuration leaves open or is not known to mean, and what it is taken for.
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
    assumed: tuple[str, ...] = ()

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
