"""Shapes of a replica, and the memory that it needs in each of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.model_shape import ModelFacts, kv_bits, weight_bits

__all__ = [
    "HEAD_BITS",
    "MemoryUse",
    "Shape",
    "default_chunk_tokens",
    "default_max_running",
    "kv_bytes_per_rank",
    "memory_use",
]

_MIB = float(2**20)
HEAD_BITS = 16.0
"""Bits of the embedding and the output projection in checkpoints of every precision."""
_LEAST_KV_TOKENS = 4096
"""A replica that cannot hold one prompt and answer of this length is of no use."""
_LEAST_ACTIVATIONS = 2048
"""Tokens whose activations SGLang sets memory aside for, however short prompt chunks are."""


class Shape(NamedTuple):
    """Degrees of parallelism of one replica.

    Attributes:
        tensor_parallel: GPUs that share each layer.
        pipeline_parallel: Groups of layers, one after another.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of the replica."""
        return self.tensor_parallel * self.pipeline_parallel

    def __str__(self) -> str:
        return f"TP{self.tensor_parallel}xPP{self.pipeline_parallel}"


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of the fullest GPU of a replica.

    Attributes:
        weights_bytes: Weights on that GPU.
        reserved_bytes: Activations, graphs, communication buffers and the runtime.
        available_bytes: The GPU's memory.
        kv_bytes_per_token: Key-value cache per token on that GPU.
        kv_capacity_tokens: Tokens that fit; below 0 where not even the weights do.
    """

    weights_bytes: float
    reserved_bytes: float
    available_bytes: float
    kv_bytes_per_token: float
    kv_capacity_tokens: int

    @property
    def needed_bytes(self) -> float:
        """Least memory with which the replica would be of use."""
        return self.weights_bytes + self.reserved_bytes + _LEAST_KV_TOKENS * self.kv_bytes_per_token

    @property
    def fits(self) -> bool:
        """Whether weights and a useful cache fit."""
        return self.needed_bytes <= self.available_bytes

    @property
    def reason(self) -> str:
        """The numbers in one sentence."""
        verdict, needed, there = "fits" if self.fits else "does not fit", self.needed_bytes, self.available_bytes
        told = (d for d in range(1, 9) if f"{needed / 1e9:.{d}f}" != f"{there / 1e9:.{d}f}")
        digits = next(told, 1)  # "24.2 GB needed, 24.2 GB there" would say nothing
        return (
            f"{verdict}: {needed / 1e9:.{digits}f} GB needed per GPU ({self.weights_bytes / 1e9:.1f} weights, "
            f"{self.reserved_bytes / 1e9:.1f} activations and runtime, "
            f"{_LEAST_KV_TOKENS * self.kv_bytes_per_token / 1e9:.1f} cache for {_LEAST_KV_TOKENS} tokens), "
            f"{there / 1e9:.{digits}f} GB there"
        )


def memory_use(
    model: ModelFacts,
    gpu: GpuFacts,
    shape: Shape,
    precision: str,
    *,
    kv_precision: str = "bf16",
    chunk_tokens: int | None = None,
) -> MemoryUse:
    """Memory of the fullest GPU of a replica.

    The reserve is what SGLang sets aside by itself: 0.5 GiB, 1.5 MiB per token of a prompt chunk of at least 2048,
    2 MiB per request of the largest captured batch, 1/8 GiB per GPU of the replica, and at least
    10 GiB on cards of more than 60 GiB.

    Args:
        model: The model.
        gpu: The GPU.
        shape: Degrees of parallelism.
        precision: Of the weights; see `PRECISION_BITS`.
        kv_precision: Of the key-value cache.
        chunk_tokens: Longest prompt chunk; by default SGLang's for the GPU's memory.
    """
    tensor, pipeline = shape
    stage_share = ceil(model.layers / pipeline) / model.layers
    layer_bytes = (model.common_bytes(precision) + model.routed_params * weight_bits(precision) / 8.0) * stage_share
    # The first pipeline stage holds the embedding, the last one the output projection.
    matrices = 1 if model.tied_embeddings or pipeline > 1 else 2
    vocabulary_bytes = matrices * model.embedding_params * HEAD_BITS / 8.0
    replicated = model.replicated_params * model.attention_bits(precision) / 8.0 * stage_share * (1.0 - 1.0 / tensor)
    weights = (layer_bytes + vocabulary_bytes) / tensor + replicated + model.extra_params * HEAD_BITS / 8.0

    chunk = chunk_tokens if chunk_tokens is not None else default_chunk_tokens(gpu)
    reserve = 512.0 + 1.5 * max(chunk, _LEAST_ACTIVATIONS) + 2.0 * default_max_running(shape) + 128.0 * shape.gpus
    if gpu.memory_bytes > 60.0 * 1024.0 * _MIB:
        reserve = max(reserve, 10.0 * 1024.0)
    reserved = reserve * _MIB

    per_token = kv_bytes_per_rank(model, tensor, kv_precision) * model.cached_layers * stage_share
    free = gpu.memory_bytes - weights - reserved
    return MemoryUse(weights, reserved, gpu.memory_bytes, per_token, int(free // per_token))


def kv_bytes_per_rank(model: ModelFacts, tensor: int, kv_precision: str) -> float:
    """Cache bytes per token and layer on one GPU.

    Key-value heads are split at most down to one; a latent cannot be split at all.
    """
    if model.latent_attention:
        numbers = model.kv_lora_rank + model.rope_dim
    else:
        numbers = 2 * ceil(model.kv_heads / tensor) * model.head_dim
    return numbers * kv_bits(kv_precision) / 8.0


def default_chunk_tokens(gpu: GpuFacts) -> int:
    """SGLang's default ``--chunked-prefill-size`` by device memory."""
    gibibytes = gpu.memory_bytes / _MIB / 1024.0
    if gibibytes < 20.0:
        return 2048
    if gibibytes < 60.0:
        return 4096
    return 8192 if gibibytes < 160.0 else 16384


def default_max_running(shape: Shape) -> int:
    """Largest batch that SGLang captures as a CUDA graph on large cards: beyond it decode slows down."""
    return 256 if shape.tensor_parallel < 4 else 512
