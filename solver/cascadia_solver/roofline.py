"""The built-in cost source: step times from datasheet rooflines and a few bounded factors.

The time of each kernel is operations ÷ (efficiency · peak rate) or bytes ÷ (efficiency · bandwidth);
launches, collectives and the scheduler add constants. Efficiencies and constants are `factors`,
fitted to measured engines by ``benchmarks/fit_cost_model.py``; what differs between architectures
is counted from the shape:

* launches: a mixture's layer has no feed-forward part of its own, latent attention projects twice,
  sparse attention has an indexer, linear attention a convolution and gates;
* a mixture's routing, permutation and expert kernels grow with the experts that a token passes;
* latent attention's projections down to the latents are held, read and computed whole by every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log2
from typing import Protocol

from cascadia_api.errors import InfeasibleError, InputError, Problem, Shortfall
from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.model_shape import ModelFacts, weight_bits
from cascadia_solver.factors import DEFAULT_ENGINE, Factors, factors_for, is_measured
from cascadia_solver.replica_memory import (
    HEAD_BITS,
    MemoryUse,
    Shape,
    default_chunk_tokens,
    default_max_running,
    kv_bytes_per_rank,
    memory_use,
)
from cascadia_solver.steptime import StepModel

__all__ = ["CostSource", "Factors", "MemoryUse", "Roofline", "Shape", "factors_for", "memory_use", "step_model"]

_ACTIVATION_BYTES = 2.0
"""Activations travel between GPUs in 16 bits."""

# Kernels of a layer, in those of a dense one.
_WITHOUT_FEED_FORWARD = 0.6
_LATENT_EXTRA = 0.3
_SPARSE_EXTRA = 2.0
_LINEAR_EXTRA = 0.5
_EXPERTS_PER_UNIT = 9.0
"""Experts that a token passes in the layer whose constants `Factors` states: DeepSeek's 8 routed and 1 shared."""

_PIPELINE_SPREAD = 1.5
_NODES_SPREAD = 1.5
_GPU_SPREAD = 2.0
_ARCHITECTURE_SPREAD = 1.5
"""Errors grow where nothing was measured; by how much is a guess, on the safe side."""


class CostSource(Protocol):
    """Where step times come from: the roofline, measured tables, or a correction learnt live."""

    @property
    def name(self) -> str:
        """The source, as predictions state it."""

    def step_model(
        self,
        model: ModelFacts,
        gpu: GpuFacts,
        shape: Shape,
        precision: str,
        *,
        gpus_per_node: int = 8,
        chunk_tokens: int | None = None,
    ) -> StepModel:
        """Coefficients of a replica with prompt chunks of that size, by default SGLang's for the GPU.

        Raises:
            InfeasibleError: It does not fit into memory.
        """

    def memory_use(
        self, model: ModelFacts, gpu: GpuFacts, shape: Shape, precision: str, *, chunk_tokens: int | None = None
    ) -> MemoryUse:
        """Memory of the fullest GPU of a replica with prompt chunks of that size."""

    def uncertainty_percent(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> float:
        """Expected (median) error of end-to-end latencies, percent."""

    def extrapolations(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> tuple[str, ...]:
        """In what the replica differs from all that the source was measured on; empty if in nothing."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """The built-in `CostSource`.

    Attributes:
        factors: Instead of each GPU's fitted factors.
        engine: Whose factors: sglang, vllm or trtllm.
    """

    factors: Factors | None = None
    engine: str = DEFAULT_ENGINE

    @property
    def name(self) -> str:
        """``roofline``."""
        return "roofline"

    def step_model(
        self,
        model: ModelFacts,
        gpu: GpuFacts,
        shape: Shape,
        precision: str,
        *,
        gpus_per_node: int = 8,
        chunk_tokens: int | None = None,
    ) -> StepModel:
        """See `step_model`."""
        factors = self._factors(gpu)
        return step_model(
            model, gpu, shape, precision, gpus_per_node=gpus_per_node, factors=factors, chunk_tokens=chunk_tokens
        )

    def memory_use(
        self, model: ModelFacts, gpu: GpuFacts, shape: Shape, precision: str, *, chunk_tokens: int | None = None
    ) -> MemoryUse:
        """See `replica_memory.memory_use`."""
        return memory_use(model, gpu, shape, precision, chunk_tokens=chunk_tokens)

    def uncertainty_percent(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> float:
        """The error on architectures left out of the fit; more for what was not measured.

        On GPUs left out of the fit it was no larger, but all those are of two generations of one make.
        """
        factors = self._factors(gpu)
        percent = factors.moe_uncertainty_percent if model.moe_layers else factors.uncertainty_percent
        if shape.pipeline_parallel > 1:
            percent *= _PIPELINE_SPREAD
        if shape.tensor_parallel > 8:
            percent *= _NODES_SPREAD
        if self.factors is None and not is_measured(gpu):
            percent *= _GPU_SPREAD
        if model.assumed or _unmeasured_attention(model):
            percent *= _ARCHITECTURE_SPREAD
        return percent

    def extrapolations(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> tuple[str, ...]:
        """What is assumed of the model; architectures and GPUs without measurements, pipelines, and several nodes."""
        found = list(model.assumed)
        if self.factors is None and not is_measured(gpu):
            found.append(f"no measured engine on {gpu.name}")
        if shape.pipeline_parallel > 1:
            found.append("no measured engine with pipeline parallelism")
        if shape.tensor_parallel > 8:
            found.append("no measured engine with tensor parallelism over several nodes")
        if kind := _unmeasured_attention(model):
            found.append(f"no measured dense model with {kind} attention, as {model.name} is")
        return tuple(found)

    def _factors(self, gpu: GpuFacts) -> Factors:
        return self.factors or factors_for(gpu, self.engine)


def _unmeasured_attention(model: ModelFacts) -> str:
    """Kind of attention that was measured on mixtures only; empty for others."""
    if model.moe_layers:
        return ""
    if model.latent_attention:
        return "latent"
    if model.linear_layers:
        return "linear"
    return "windowed" if model.window_layers else ""


@lru_cache(maxsize=4096)
def step_model(
    model: ModelFacts,
    gpu: GpuFacts,
    shape: Shape,
    precision: str,
    *,
    kv_precision: str = "bf16",
    gpus_per_node: int = 8,
    factors: Factors | None = None,
    chunk_tokens: int | None = None,
    max_running: int | None = None,
) -> StepModel:
    """Step-time coefficients of a replica by the roofline.

    Args:
        model: The model.
        gpu: The GPU.
        shape: Degrees of parallelism.
        precision: Of the weights. fp8 and int8 also compute in 8 bits where the GPU can; int4
            computes in 16 bits.
        kv_precision: Of the key-value cache: bf16 or fp8.
        gpus_per_node: GPUs of one server; tensor parallelism beyond that uses the network.
        factors: Efficiencies and overheads; by default `factors_for` the GPU under SGLang.
        chunk_tokens: Longest prompt chunk; by default SGLang's for the GPU's memory.
        max_running: Largest batch; by default the largest that SGLang captures as a CUDA graph.

    Raises:
        InputError: If a precision or a degree is senseless.
        InfeasibleError: If the model does not fit; says how many bytes are needed and there.
    """
    tensor, pipeline = shape
    if tensor < 1 or pipeline < 1:
        raise InputError(Problem("parallelism", f"degrees must be at least 1, not {tensor} and {pipeline}"))
    if pipeline > model.layers:
        raise InputError(Problem("pipelineParallel", f"{pipeline} stages for {model.layers} layers; use fewer"))
    memory = memory_use(model, gpu, shape, precision, kv_precision=kv_precision, chunk_tokens=chunk_tokens)
    if not memory.fits:
        raise InfeasibleError(
            "ModelFitsNowhere",
            f"{model.name} in {precision} on {shape} of {gpu.name} {memory.reason}",
            shortfalls=[Shortfall(f"bytes per {gpu.name}", memory.needed_bytes, memory.available_bytes)],
        )
    chosen = factors or factors_for(gpu)
    attention_flops = chosen.attention_flops * gpu.bf16_flops
    bandwidth = chosen.bandwidth * gpu.memory_bandwidth
    kv_bandwidth = chosen.kv_bandwidth * gpu.memory_bandwidth
    routed_bytes = model.routed_params * weight_bits(precision) / 8.0
    state_bytes = 2.0 * model.linear_layers * model.linear_state_bytes  # read and written
    replicated = model.replicated_params * model.attention_bits(precision) / 8.0 * (1.0 - 1.0 / tensor)
    head_bytes = model.embedding_params * HEAD_BITS / 8.0
    pair_flops, position_flops = _attention_flops(model)
    pair_seconds = pair_flops / tensor / attention_flops
    position_seconds = max(
        position_flops / tensor / attention_flops, kv_bytes_per_rank(model, tensor, kv_precision) / kv_bandwidth
    )
    full_layers = model.cached_layers - model.window_layers
    prefill_share = 1.0 / pipeline + chosen.bubble * (1.0 - 1.0 / pipeline)
    transfer, latency = _communication(model, gpu, shape, gpus_per_node, chosen)
    return StepModel(
        token_seconds=_token_seconds(model, gpu, tensor, precision, chosen),
        logits_seconds=2.0 * model.embedding_params / tensor / (chosen.flops * gpu.bf16_flops),
        weight_seconds=((model.common_bytes(precision) + head_bytes) / tensor + replicated) / bandwidth,
        expert_seconds=routed_bytes / tensor / (chosen.expert_bandwidth * gpu.memory_bandwidth),
        expert_miss=1.0 - model.experts_per_token / model.experts if model.experts else 0.0,
        prefill_pair_seconds=pair_seconds * full_layers,
        prefill_window_pair_seconds=pair_seconds * model.window_layers,
        decode_context_seconds=position_seconds * full_layers,
        decode_window_seconds=position_seconds * model.window_layers,
        window_tokens=float(model.sliding_window),
        transfer_token_seconds=transfer,
        overhead_seconds=chosen.step_seconds
        + _plain_layers(model) * chosen.dense_layer_seconds
        + _routed_layers(model) * chosen.moe_layer_seconds
        + _narrow_seconds(model, precision, chosen)
        + latency,
        prefill_share=prefill_share,
        decode_share=1.0 / pipeline,
        kv_capacity_tokens=float(memory.kv_capacity_tokens),
        max_running=float(max_running if max_running is not None else default_max_running(shape)),
        chunk_tokens=float(chunk_tokens if chunk_tokens is not None else default_chunk_tokens(gpu)),
        prompt_overhead_seconds=_plain_layers(model) * chosen.prompt_layer_seconds
        + _routed_layers(model) * chosen.prompt_moe_layer_seconds,
        request_seconds=chosen.request_seconds + state_bytes / tensor / bandwidth,
        overlap_loss=chosen.overlap_loss,
        first_token_seconds=chosen.first_token_seconds
        + _routed_layers(model) * chosen.first_token_moe_layer_seconds
        + (model.layers if model.latent_attention else 0) * chosen.first_token_latent_layer_seconds,
        bunching=chosen.bunching,
    )


def _plain_layers(model: ModelFacts) -> float:
    """Kernels of a step without those of routing and experts, in those of a dense layer."""
    count = model.layers - (1.0 - _WITHOUT_FEED_FORWARD) * model.moe_layers + _LINEAR_EXTRA * model.linear_layers
    if model.latent_attention:
        count += (_LATENT_EXTRA + (_SPARSE_EXTRA if model.sliding_window else 0.0)) * model.layers
    return count


def _routed_layers(model: ModelFacts) -> float:
    """Kernels of routing and experts, in those of a layer in which a token passes nine experts."""
    passed = model.experts_per_token + (1 if model.shared_intermediate else 0)
    return model.moe_layers * passed / _EXPERTS_PER_UNIT


def _narrow_seconds(model: ModelFacts, precision: str, factors: Factors) -> float:
    """Kernels of a step that bring activations into the weights' format, s."""
    if precision == "fp8":
        return _routed_layers(model) * factors.fp8_moe_layer_seconds
    return (model.layers - model.moe_layers) * factors.fp4_layer_seconds if precision == "fp4" else 0.0


def _token_seconds(model: ModelFacts, gpu: GpuFacts, tensor: int, precision: str, factors: Factors) -> float:
    """Arithmetic of all layers' matrix products for one token on one GPU, s.

    Quantised products run at the narrow rate where the GPU has one, else dequantised at the 16-bit rate.
    """
    narrow_peak = {"fp8": gpu.fp8_flops, "int8": gpu.int8_flops, "fp4": gpu.fp4_flops}.get(precision, 0.0)
    wide = factors.flops * gpu.bf16_flops
    narrow = factors.narrow_flops * narrow_peak if narrow_peak else wide
    attention = model.all_attention_params + model.replicated_params * (tensor - 1)
    seconds = attention / (wide if model.attention_bits(precision) == HEAD_BITS else narrow)
    seconds += (model.common_params - model.all_attention_params) / narrow
    if model.moe_layers:
        routed = model.routed_params * model.experts_per_token / model.experts
        seconds += routed / (factors.expert_flops * (narrow_peak or gpu.bf16_flops))
    return 2.0 * seconds / tensor


def _attention_flops(model: ModelFacts) -> tuple[float, float]:
    """Operations of one layer per attended position: per prompt token, and per decoding request.

    Latent attention expands keys and values for prompts, and works on the cached latent for decode.
    """
    if not model.latent_attention:
        each = 4.0 * model.heads * model.head_dim
        return each, each
    prefill = 2.0 * model.heads * (model.nope_dim + model.rope_dim + model.value_dim)
    decode = 2.0 * model.heads * (2 * model.kv_lora_rank + model.rope_dim)
    return prefill, decode


def _communication(
    model: ModelFacts, gpu: GpuFacts, shape: Shape, gpus_per_node: int, factors: Factors
) -> tuple[float, float]:
    """Seconds per token, and seconds per step, of all-reduces and pipeline hand-overs.

    Two all-reduces a layer, ring time 2 (t - 1) / t of the bytes over the slowest link; over several
    nodes hierarchically: each GPU's share of the sum crosses the network. Its latency grows by one
    exchange for each doubling of the ranks.
    """
    tensor, pipeline = shape
    bytes_per_token = _ACTIVATION_BYTES * model.hidden
    link = factors.link * gpu.link_bandwidth
    network = factors.link * gpu.network_bandwidth
    per_token = 0.0
    latency = 0.0
    if tensor > 1:
        local = min(tensor, gpus_per_node)
        nodes = ceil(tensor / gpus_per_node)
        reduce = 2.0 * (local - 1) / local / link + 2.0 * (nodes - 1) / nodes / local / network
        per_token += 2.0 * model.layers * bytes_per_token * reduce
        latency += 2.0 * model.layers * factors.all_reduce_seconds * log2(local)
        if nodes > 1:
            latency += 2.0 * model.layers * factors.network_all_reduce_seconds
    if pipeline > 1:
        hop = link if shape.gpus <= gpus_per_node else network
        per_token += (pipeline - 1) * bytes_per_token / hop
        latency += pipeline * factors.hop_seconds
    return per_token, latency
