"""Which shapes one replica of a model can have on a kind of GPU, and in which precisions."""

from __future__ import annotations

from typing import NamedTuple

from cascadia_api.errors import InfeasibleError, Shortfall
from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.roofline import CostSource, Roofline, Shape
from cascadia_solver.steptime import StepModel

__all__ = ["ReplicaOption", "replica_options", "unsupported_precision"]

_MOST_STAGES = 8


class ReplicaOption(NamedTuple):
    """One way to run a replica.

    Attributes:
        shape: Degrees of parallelism.
        gpus: GPUs it takes.
        step: Its step times and limits.
    """

    shape: Shape
    gpus: int
    step: StepModel


def unsupported_precision(model: ModelFacts, gpu: GpuFacts, precision: str) -> str | None:
    """Why a GPU cannot serve a model in a precision, with the numbers; None if it can.

    Floating-point weights of 8 and 4 bits need arithmetic of their kind: engines have no kernels otherwise,
    but for MXFP4. Integer weights are dequantised anywhere.
    """
    rates = {"bf16": gpu.bf16_flops, "int8": gpu.int8_flops, "fp8": gpu.fp8_flops, "fp4": gpu.fp4_flops}
    if rates.get(precision, 1.0) > 0.0 or (precision == "fp4" and model.fp4_anywhere):
        return None
    there = [name for name, rate in rates.items() if rate > 0.0]
    listed = ", ".join(f"{name} {rates[name] / 1e12:.0f}" for name in there)
    return (
        f"{model.name} in {precision}: {gpu.name} has no {precision} arithmetic (dense teraflops: {listed}, "
        f"{precision} 0); use {', '.join([*there, 'int4'])}, or another GPU"
    )


def replica_options(
    model: ModelFacts,
    gpu: GpuFacts,
    precision: str,
    *,
    max_tensor_parallel: int | None = None,
    max_pipeline_parallel: int | None = None,
    gpus_per_node: int = 8,
    max_gpus: int = 64,
    source: CostSource | None = None,
) -> list[ReplicaOption]:
    """Every shape in which the model fits, by number of GPUs and then by tensor parallelism.

    Degrees are powers of two, so that shapes fill nodes without gaps. Tensor parallelism must split
    the query heads evenly, and exceeds a node only by whole nodes.

    Args:
        model: The model.
        gpu: The GPU.
        precision: Of the weights.
        max_tensor_parallel: The manifest's limit, if any.
        max_pipeline_parallel: The manifest's limit; 8 by default.
        gpus_per_node: GPUs of one server.
        max_gpus: Most GPUs of one replica.
        source: Cost source; the roofline by default.

    Raises:
        InfeasibleError: If the GPU has no arithmetic of the precision, or no shape fits; says the bytes needed
            and there for the roomiest one.
    """
    if (refused := unsupported_precision(model, gpu, precision)) is not None:
        raise InfeasibleError("PrecisionUnsupported", refused)
    costs = source if source is not None else Roofline()
    options: list[ReplicaOption] = []
    roomiest: tuple[float, Shape] | None = None
    most_stages = max_pipeline_parallel if max_pipeline_parallel is not None else _MOST_STAGES
    limit = min(max_gpus, max_tensor_parallel if max_tensor_parallel is not None else max_gpus)
    for tensor in _powers_of_two(limit):
        if model.heads % tensor or (tensor > gpus_per_node and tensor % gpus_per_node):
            continue
        for pipeline in _powers_of_two(min(most_stages, model.layers, max_gpus // tensor)):
            shape = Shape(tensor, pipeline)
            memory = costs.memory_use(model, gpu, shape, precision)
            if memory.fits:
                step = costs.step_model(model, gpu, shape, precision, gpus_per_node=gpus_per_node)
                options.append(ReplicaOption(shape, shape.gpus, step))
            elif roomiest is None or memory.needed_bytes < roomiest[0]:
                roomiest = (memory.needed_bytes, shape)
    if options:
        return sorted(options, key=lambda option: (option.gpus, option.shape.tensor_parallel))
    if roomiest is None:
        raise InfeasibleError(
            "ModelFitsNowhere",
            f"{model.name}: no shape of at most {max_gpus} GPUs is allowed",
            shortfalls=[Shortfall("GPUs of one replica", 1, max_gpus)],
        )
    needed, shape = roomiest
    raise InfeasibleError(
        "ModelFitsNowhere",
        f"{model.name} in {precision} fits on no shape of at most {max_gpus} x {gpu.name}: even {shape} "
        f"{costs.memory_use(model, gpu, shape, precision).reason}; use more GPUs a replica, larger ones or a lower "
        "precision",
        shortfalls=[Shortfall(f"bytes per {gpu.name}", needed, gpu.memory_bytes)],
    )


def _powers_of_two(most: int) -> list[int]:
    return [1 << exponent for exponent in range(most.bit_length())] if most > 0 else []
