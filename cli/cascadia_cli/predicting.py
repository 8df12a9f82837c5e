"""`cascadia predict`: one replica, by the same code that plans."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from cascadia_api.errors import InputError, Problem
from cascadia_cli.figures import duration
from cascadia_cli.files import read_json
from cascadia_cli.step_times import read_cost_source

if TYPE_CHECKING:
    from cascadia_solver.catalogue.gpus import GpuFacts
    from cascadia_solver.catalogue.models import ModelFacts
    from cascadia_solver.prediction import Prediction

__all__ = ["gpu_named", "model_named", "print_prediction"]


def print_prediction(
    *,
    model: str,
    gpu: str,
    tensor_parallel: int,
    pipeline_parallel: int,
    precision: str | None,
    input_tokens: int,
    output_tokens: int,
    concurrency: int | None,
    rate: float | None,
    prefix_cache_hit: int,
    chunk_tokens: int | None,
    gpu_spec: str | None,
    cost: tuple[str, str, str | None],
    as_json: bool,
) -> None:
    """Predict and print; `cost` are the arguments of `read_cost_source`.

    Raises:
        InputError: A flag is wrong; every such error names the flag.
    """
    from cascadia_solver.prediction import predict
    from cascadia_solver.roofline import Shape

    if (concurrency is None) == (rate is None):
        raise InputError("give exactly one of --concurrency and --rate")
    facts = model_named(model)
    if facts.heads % tensor_parallel:
        indivisible = f"{tensor_parallel} does not divide the {facts.heads} attention heads of {facts.name}"
        raise InputError(Problem("--tensor-parallel", f"{indivisible}: use a power of two"))
    accelerator = gpu_named(gpu, gpu_spec)
    source = read_cost_source(*cost)
    try:
        prediction = predict(
            facts,
            accelerator,
            Shape(tensor_parallel, pipeline_parallel),
            precision or facts.native_precision,
            [input_tokens],
            [output_tokens],
            concurrency=concurrency,
            rate=rate,
            source=source,
            prefix_cache_hit=prefix_cache_hit,
            chunk_tokens=chunk_tokens,
        )
    except InputError as error:
        raise InputError([Problem(f"--{p.field}" if p.field else "", p.message) for p in error.problems]) from None
    if as_json:
        document = prediction.to_json() | {"engine": cost[1], "precision": precision or facts.native_precision}
        sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    else:
        sys.stdout.write(
            _words(facts.name, accelerator.name, tensor_parallel, pipeline_parallel, prediction, cost[1], concurrency)
        )


def gpu_named(name: str, spec: str | None) -> GpuFacts:
    """The GPU that ``--gpu`` and ``--gpu-spec`` mean; errors name the flag."""
    from cascadia_solver.catalogue.gpus import GPUS, custom_gpu, gpu_facts

    try:
        if spec is None:
            return gpu_facts(name)
    except InputError as error:
        raise InputError(Problem("--gpu", f"{error}; or give another's numbers with --gpu-spec")) from None
    if name.casefold() in {known.casefold() for known in GPUS}:
        raise InputError(
            Problem("--gpu-spec", f"{name} is in the catalogue: leave --gpu-spec out, or call the GPU something else")
        )
    try:
        memory, bandwidth, bf16, fp8, link = (float(number) for number in spec.split(","))
    except ValueError:
        raise InputError(
            Problem("--gpu-spec", f"{spec!r} is not five numbers: memory GB, GB/s, bf16 and fp8 teraflops, link GB/s")
        ) from None
    try:
        return custom_gpu(
            name,
            memory_gigabytes=memory,
            memory_gigabytes_per_second=bandwidth,
            bf16_teraflops=bf16,
            fp8_teraflops=fp8,
            link_gigabytes_per_second=link,
        )
    except InputError as error:
        raise InputError([Problem("--gpu-spec", str(problem)) for problem in error.problems]) from None


def model_named(name: str) -> ModelFacts:
    """The model that ``--model`` means, a name or a config.json; errors name the flag."""
    from cascadia_solver.catalogue.models import facts_from_config, model_facts

    if name.endswith(".json"):
        config = read_json(name)
        try:
            return facts_from_config(config)
        except InputError as error:
            raise error.within(name) from None
    try:
        return model_facts(name)
    except InputError as error:
        raise InputError([Problem("--model", str(problem)) for problem in error.problems]) from None


def _words(
    model: str,
    gpu: str,
    tensor_parallel: int,
    pipeline_parallel: int,
    prediction: Prediction,
    engine: str,
    clients: int | None,
) -> str:
    shape = f"TP{tensor_parallel}" + (f" PP{pipeline_parallel}" if pipeline_parallel > 1 else "")
    lines = [f"{model} on {tensor_parallel * pipeline_parallel} {gpu} ({shape})", f"memory       {prediction.reason}"]
    if prediction.fits:
        lines.append(f"KV cache     {prediction.kv_capacity_tokens:,} tokens")
        for name, latency in (
            ("first token", prediction.ttft),
            ("per token", prediction.tpot),
            ("end to end", prediction.e2e),
        ):
            if latency is not None:
                lines.append(f"{name:<12} {', '.join(f'p{p} {duration(ms)}' for p, ms in latency.by_percentile())}")
        lines.append(f"throughput   {prediction.output_tokens_per_second:,.0f} output tokens/s")
        if prediction.saturated and clients is None:
            lines.append("saturated    it cannot keep up: these latencies grow with time; lower the load or add GPUs")
        elif prediction.saturated:
            waits = f"not all of {clients:,} clients fit in a batch: the others wait, which these latencies include"
            lines.append(f"saturated    {waits}; more clients add waiting, not throughput")
        sure = f"median error about {prediction.uncertainty_percent:.0f} % end to end"
        lines.append(f"source       {prediction.source} ({engine}), {sure}")
        lines += [f"extrapolated {what}" for what in prediction.extrapolates]
    return "".join(f"{line}\n" for line in lines)
