"""What datasheets do not say: the efficiencies and constants of a kind of GPU under a kind of engine.

They are fitted to 3,200 measurements of SGLang, vLLM and TensorRT-LLM on H100, H200 and B200 by
``benchmarks/fit_cost_model.py``, which writes `fitted_factors`, within bounds that physics and other
publications set:

=========================  ==============  ======================================================
factor                     bounds          why
=========================  ==============  ======================================================
products, 16 bits          0.4 … 0.8       large ones reach 60-75 % of the dense peak
products, 8 and 4 bits     0.25 … 0.8      scaling and conversion come on top
experts' products          0.08 … 0.8      many small ones, unevenly loaded
bandwidth, common weights  0.6 … 0.95      75-90 % of the memory bandwidth
experts' weights, cache    0.3 … 0.95      scattered reads
dense layer                4 … 40 µs       launch gaps and small kernels
a mixture's experts        10 … 120 µs     routing, permutation, many small products
narrow activations         1 … 60 µs       kernels that scale and pack them, in fp8 mixtures and dense fp4
all-reduce                 1 … 15 µs       per doubling of the ranks
=========================  ==============  ======================================================

A GPU is one step from what it shares with all others; an engine changes the constants, not the
efficiencies. GPUs without measurements take what the measured ones share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cascadia_api.errors import InputError, Problem
from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.fitted_factors import FITTED

__all__ = ["ANY_GPU", "DEFAULT_ENGINE", "ENGINES", "Factors", "factors_for", "is_measured"]

ENGINES = ("sglang", "vllm", "trtllm")
DEFAULT_ENGINE = "sglang"
ANY_GPU = "any"
"""Key of what all GPUs share."""


@dataclass(frozen=True, slots=True)
class Factors:
    """Efficiencies and constants; see the module's table for the bounds.

    Attributes:
        flops: Share of the dense 16-bit peak rate that matrix products reach.
        narrow_flops: Share of the dense 8- or 4-bit peak rate that matrix products reach.
        expert_flops: Share of the peak rate that the routed experts' products reach.
        attention_flops: Share of the dense 16-bit peak rate that attention reaches.
        bandwidth: Share of the memory bandwidth that reads of the common weights reach.
        expert_bandwidth: The same for the routed experts' weights.
        kv_bandwidth: The same for the key-value cache.
        overlap_loss: Share of the faster of arithmetic and weight reads that the slower does not hide.
        link: Share of the link and network bandwidth that collectives reach.
        dense_layer_seconds: Constant per dense layer.
        moe_layer_seconds: Constant per layer in which a token passes nine experts.
        fp8_moe_layer_seconds: Further constant per such layer with fp8 weights, whose activations are scaled in blocks.
        fp4_layer_seconds: Further constant per dense layer with fp4 weights, whose activations are packed.
        all_reduce_seconds: Latency of one all-reduce within a node, per doubling of the ranks.
        network_all_reduce_seconds: Further latency of one all-reduce over several nodes.
        hop_seconds: Latency of one pipeline hand-over.
        step_seconds: Constant per step: scheduler, sampling, detokenisation.
        request_seconds: Per decoding request and step.
        prompt_layer_seconds: Further constant per dense layer in a step with prompts, which no graph covers.
        prompt_moe_layer_seconds: The same per layer with nine experts a token.
        first_token_seconds: Outside the steps, once a request.
        first_token_moe_layer_seconds: The same per layer with nine experts a token.
        first_token_latent_layer_seconds: The same per layer with latent attention.
        bunching: Share of the other clients' prompts that one waits for in a closed loop.
        bubble: Share of the pipeline's gain that prompts lose to bubbles.
        uncertainty_percent: Median error of end-to-end latency on dense architectures left out of the fit.
        moe_uncertainty_percent: The same on mixtures.
    """

    flops: float = 0.6
    narrow_flops: float = 0.5
    expert_flops: float = 0.35
    attention_flops: float = 0.5
    bandwidth: float = 0.8
    expert_bandwidth: float = 0.7
    kv_bandwidth: float = 0.7
    overlap_loss: float = 0.3
    link: float = 0.5
    dense_layer_seconds: float = 10e-6
    moe_layer_seconds: float = 50e-6
    fp8_moe_layer_seconds: float = 10e-6
    fp4_layer_seconds: float = 10e-6
    all_reduce_seconds: float = 4e-6
    network_all_reduce_seconds: float = 30e-6
    hop_seconds: float = 30e-6
    step_seconds: float = 500e-6
    request_seconds: float = 10e-6
    prompt_layer_seconds: float = 40e-6
    prompt_moe_layer_seconds: float = 100e-6
    first_token_seconds: float = 15e-3
    first_token_moe_layer_seconds: float = 0.3e-3
    first_token_latent_layer_seconds: float = 0.5e-3
    bunching: float = 0.2
    bubble: float = 0.25
    uncertainty_percent: float = 45.0
    moe_uncertainty_percent: float = 45.0


def is_measured(gpu: GpuFacts) -> bool:
    """Whether engines on this GPU are among the measurements."""
    return gpu.name in FITTED


def factors_for(gpu: GpuFacts, engine: str = DEFAULT_ENGINE) -> Factors:
    """The fitted factors of a GPU; what all share where there are no measurements of it.

    PCIe cards get a slower all-reduce, MI300X that and lower efficiencies, as published benchmarks show.

    Raises:
        InputError: If the engine is unknown.
    """
    if engine not in ENGINES:
        raise InputError(Problem("engine", f"{engine!r} is unknown; use {', '.join(ENGINES)}"))
    factors = Factors(**FITTED.get(gpu.name, FITTED[ANY_GPU])[engine])
    if is_measured(gpu):
        return factors
    family = gpu.name.split("-", 1)[0]
    if "PCIe" in gpu.name or family in {"L4", "L40S"}:
        return replace(factors, all_reduce_seconds=15e-6)
    if family == "MI300X":
        return replace(factors, flops=0.45, narrow_flops=0.4, bandwidth=0.65, all_reduce_seconds=10e-6)
    return factors
