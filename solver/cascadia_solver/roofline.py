"""The built-in cost source: step times from datasheet rooflines and a few bounded factors.

The time of each kernel is the larger of operations ÷ (efficiency · peak rate) and bytes ÷
(efficiency · bandwidth); launches, collectives and the scheduler add constants. The factors are
within bounds that published measurements support:

========================  ============  =====================================================
factor                    bounds        why
========================  ============  =====================================================
arithmetic efficiency     0.4 … 0.8     large matrix products reach 60-75 % of dense peak
bandwidth efficiency      0.6 … 0.95    weight and cache reads reach 75-90 % of HBM peak
dense layer               5 … 20 µs     launch gaps and small kernels (norm, rotary, activation)
mixture layer             50 … 100 µs   routing, permutation, many small products
all-reduce                4 … 30 µs     latency of one collective in a node (NVLink … PCIe)
========================  ============  =====================================================

Without any factor the roofline is about 50 % too fast on measured H100 time per output token. With
these its median error of end-to-end latency is 12 % there, 18 to 20 % on H200 and 14 to 23 %
on B200, on rows that include those by which the factors were chosen. Time to first token under many
clients is not part of that: measured ones also hold the client's and the engine's own queueing, and
are several times longer than the prompt's arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Protocol

from cascadia_api.errors import InfeasibleError, InputError, Problem, Shortfall
from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.models import ModelFacts, kv_bits, weight_bits
from cascadia_solver.steptime import StepModel

__all__ = ["CostSource", "Factors", "MemoryUse", "Roofline", "Shape", "factors_for", "memory_use", "step_model"]

_MIB = float(2**20)
_ACTIVATION_BYTES = 2.0
"""Activations travel between GPUs in 16 bits."""
_HEAD_BITS = 16.0
_LEAST_KV_TOKENS = 4096
"""A replica that cannot hold one prompt and answer of this length is of no use."""


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
class Factors:
    """What datasheets do not say; see the module's table for the bounds.

    Attributes:
        flops: Share of the dense 16-bit peak rate that matrix products reach.
        narrow_flops: Share of the dense 8- or 4-bit peak rate that matrix products reach.
        attention_flops: Share of the dense 16-bit peak rate that attention reaches.
        bandwidth: Share of the memory bandwidth that reads of the common weights reach.
        expert_bandwidth: The same for the routed experts' weights.
        kv_bandwidth: The same for the key-value cache.
        overlap_loss: Share of the faster of arithmetic and weight reads that the slower does not hide.
        link: Share of the link and network bandwidth that collectives reach.
        dense_layer_seconds: Constant per layer with a dense feed-forward part.
        moe_layer_seconds: Constant per layer with a mixture of experts.
        all_reduce_seconds: Latency of one all-reduce within a node.
        network_all_reduce_seconds: Latency of one all-reduce over several nodes.
        hop_seconds: Latency of one pipeline hand-over.
        step_seconds: Constant per step: scheduler, sampling, detokenisation.
        prompt_layer_seconds: Further constant per layer in a step with prompts, which no graph covers.
        request_seconds: Per decoding request and step.
        bubble: Share of the pipeline's gain that prompts lose to bubbles.
        uncertainty_percent: Median error of end-to-end latency on published measurements, in-sample.
    """

    flops: float = 0.5
    narrow_flops: float = 0.5
    attention_flops: float = 0.5
    bandwidth: float = 0.76
    expert_bandwidth: float = 0.76
    kv_bandwidth: float = 0.76
    overlap_loss: float = 0.0
    link: float = 0.7
    dense_layer_seconds: float = 12e-6
    moe_layer_seconds: float = 70e-6
    all_reduce_seconds: float = 8e-6
    network_all_reduce_seconds: float = 30e-6
    hop_seconds: float = 30e-6
    step_seconds: float = 500e-6
    prompt_layer_seconds: float = 0.0
    request_seconds: float = 0.0
    bubble: float = 0.25
    uncertainty_percent: float = 45.0


# One set of efficiencies serves all NVIDIA generations; what is known about each is how far off it is:
# medians over 1,400 aggregated rows of aiconfigurator-core 0.12's silicon table (dense models on H100 12 %,
# H200 18 %, B200 14 %; mixtures 12, 20 and 23 %); A100 from max-throughput tables. Others have no measurements.
# In-sample: the set was chosen by hand among six on about a third of those rows. No fit, nothing held out.
_FACTORS: dict[str, Factors] = {
    "A100": Factors(uncertainty_percent=25.0),
    "H100": Factors(uncertainty_percent=13.0),
    "H200": Factors(uncertainty_percent=18.0),
    "B200": Factors(uncertainty_percent=20.0),
}
_PCIE = Factors(all_reduce_seconds=20e-6)
_MI300X = Factors(flops=0.45, bandwidth=0.65)


def factors_for(gpu: GpuFacts) -> Factors:
    """The default factors of a GPU: by family where there are measurements, else generic ones.

    PCIe cards get a slower all-reduce. MI300X gets lower efficiencies, as published benchmarks show.
    """
    family = gpu.name.split("-", 1)[0]
    if "PCIe" in gpu.name or family in {"L4", "L40S"}:
        return _PCIE
    if family == "MI300X":
        return _MI300X
    return _FACTORS.get(family, Factors())


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
        verdict = "fits" if self.fits else "does not fit"
        return (
            f"{verdict}: {self.needed_bytes / 1e9:.1f} GB needed per GPU ({self.weights_bytes / 1e9:.1f} weights, "
            f"{self.reserved_bytes / 1e9:.1f} activations and runtime, "
            f"{_LEAST_KV_TOKENS * self.kv_bytes_per_token / 1e9:.1f} cache for {_LEAST_KV_TOKENS} tokens), "
            f"{self.available_bytes / 1e9:.1f} GB there"
        )


class CostSource(Protocol):
    """Where step times come from: the roofline, measured tables, or a correction learnt live."""

    @property
    def name(self) -> str:
        """The source, as predictions state it."""

    def step_model(
        self, model: ModelFacts, gpu: GpuFacts, shape: Shape, precision: str, *, gpus_per_node: int = 8
    ) -> StepModel:
        """Coefficients of a replica; InfeasibleError where it does not fit into memory."""

    def uncertainty_percent(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> float:
        """Expected (median) error of end-to-end latencies, percent."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """The built-in `CostSource`.

    Attributes:
        factors: Instead of each GPU's default factors.
    """

    factors: Factors | None = None

    @property
    def name(self) -> str:
        """``roofline``."""
        return "roofline"

    def step_model(
        self, model: ModelFacts, gpu: GpuFacts, shape: Shape, precision: str, *, gpus_per_node: int = 8
    ) -> StepModel:
        """See `step_model`."""
        return step_model(model, gpu, shape, precision, gpus_per_node=gpus_per_node, factors=self.factors)

    def uncertainty_percent(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> float:
        """The GPU's measured median; half as much again for pipelines, a quarter for mixtures.

        The measurements behind the medians have no pipelines, and errors on mixtures spread more.
        """
        percent = (self.factors or factors_for(gpu)).uncertainty_percent
        if shape.pipeline_parallel > 1:
            percent *= 1.5
        if model.moe_layers:
            percent *= 1.25
        return percent


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

    The reserve is what SGLang sets aside by itself: 0.5 GiB, 1.5 MiB per token of a prompt chunk,
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
    vocabulary_bytes = matrices * model.embedding_params * _HEAD_BITS / 8.0
    weights = (layer_bytes + vocabulary_bytes) / tensor + model.extra_params * _HEAD_BITS / 8.0

    chunk = chunk_tokens if chunk_tokens is not None else _default_chunk_tokens(gpu)
    reserve = 512.0 + 1.5 * chunk + 2.0 * _default_max_running(shape) + 128.0 * shape.gpus
    if gpu.memory_bytes > 60.0 * 1024.0 * _MIB:
        reserve = max(reserve, 10.0 * 1024.0)
    reserved = reserve * _MIB

    per_token = _kv_bytes_per_rank(model, tensor, kv_precision) * model.cached_layers * stage_share
    free = gpu.memory_bytes - weights - reserved
    return MemoryUse(weights, reserved, gpu.memory_bytes, per_token, int(free // per_token))


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
        factors: Efficiencies and overheads; by default `factors_for` the GPU.
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
    head_bytes = model.embedding_params * _HEAD_BITS / 8.0
    pair_flops, position_flops = _attention_flops(model)
    pair_seconds = pair_flops / tensor / attention_flops
    position_seconds = max(
        position_flops / tensor / attention_flops, _kv_bytes_per_rank(model, tensor, kv_precision) / kv_bandwidth
    )
    full_layers = model.cached_layers - model.window_layers
    prefill_share = 1.0 / pipeline + chosen.bubble * (1.0 - 1.0 / pipeline)
    transfer, latency = _communication(model, gpu, shape, gpus_per_node, chosen)
    return StepModel(
        token_seconds=_token_seconds(model, gpu, precision, chosen) / tensor,
        logits_seconds=2.0 * model.embedding_params / tensor / (chosen.flops * gpu.bf16_flops),
        weight_seconds=(model.common_bytes(precision) + head_bytes) / tensor / bandwidth,
        expert_seconds=routed_bytes / tensor / (chosen.expert_bandwidth * gpu.memory_bandwidth),
        expert_miss=1.0 - model.experts_per_token / model.experts if model.experts else 0.0,
        prefill_pair_seconds=pair_seconds * full_layers,
        prefill_window_pair_seconds=pair_seconds * model.window_layers,
        decode_context_seconds=position_seconds * full_layers,
        decode_window_seconds=position_seconds * model.window_layers,
        window_tokens=float(model.sliding_window),
        transfer_token_seconds=transfer,
        overhead_seconds=chosen.step_seconds
        + (model.layers - model.moe_layers) * chosen.dense_layer_seconds
        + model.moe_layers * chosen.moe_layer_seconds
        + latency,
        prefill_share=prefill_share,
        decode_share=1.0 / pipeline,
        kv_capacity_tokens=float(memory.kv_capacity_tokens),
        max_running=float(max_running if max_running is not None else _default_max_running(shape)),
        chunk_tokens=float(chunk_tokens if chunk_tokens is not None else _default_chunk_tokens(gpu)),
        prompt_overhead_seconds=model.layers * chosen.prompt_layer_seconds,
        request_seconds=chosen.request_seconds + state_bytes / tensor / bandwidth,
        overlap_loss=chosen.overlap_loss,
    )


def _token_seconds(model: ModelFacts, gpu: GpuFacts, precision: str, factors: Factors) -> float:
    """Arithmetic of all layers' matrix products for one token on one GPU, s."""
    peak = {"fp8": gpu.fp8_flops, "int8": gpu.int8_flops, "fp4": gpu.fp4_flops}.get(precision, 0.0)
    narrow = factors.narrow_flops * peak if peak else factors.flops * gpu.bf16_flops
    kept = model.attention_in_16_bits or (precision == "fp4" and model.moe_layers > 0)
    attention = model.all_attention_params
    rest = model.common_params - attention
    if model.moe_layers:
        rest += model.routed_params * model.experts_per_token // model.experts
    return 2.0 * (attention / (factors.flops * gpu.bf16_flops if kept else narrow) + rest / narrow)


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


def _kv_bytes_per_rank(model: ModelFacts, tensor: int, kv_precision: str) -> float:
    """Cache bytes per token and layer on one GPU.

    Key-value heads are split at most down to one; a latent cannot be split at all.
    """
    if model.latent_attention:
        numbers = model.kv_lora_rank + model.rope_dim
    else:
        numbers = 2 * ceil(model.kv_heads / tensor) * model.head_dim
    return numbers * kv_bits(kv_precision) / 8.0


def _communication(
    model: ModelFacts, gpu: GpuFacts, shape: Shape, gpus_per_node: int, factors: Factors
) -> tuple[float, float]:
    """Seconds per token, and seconds per step, of all-reduces and pipeline hand-overs.

    Two all-reduces a layer, ring time 2 (t - 1) / t of the bytes over the slowest link; over several
    nodes hierarchically: each GPU's share of the sum crosses the network.
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
        latency += (
            2.0 * model.layers * (factors.all_reduce_seconds if nodes == 1 else factors.network_all_reduce_seconds)
        )
    if pipeline > 1:
        hop = link if shape.gpus <= gpus_per_node else network
        per_token += (pipeline - 1) * bytes_per_token / hop
        latency += pipeline * factors.hop_seconds
    return per_token, latency


def _default_chunk_tokens(gpu: GpuFacts) -> int:
    """SGLang's default ``--chunked-prefill-size`` by device memory."""
    gibibytes = gpu.memory_bytes / _MIB / 1024.0
    if gibibytes < 35.0:
        return 2048
    if gibibytes < 60.0:
        return 4096
    return 8192 if gibibytes < 160.0 else 16384


def _default_max_running(shape: Shape) -> int:
    """Largest batch that SGLang captures as a CUDA graph on large cards: beyond it decode slows down."""
    return 256 if shape.tensor_parallel < 4 else 512
