"""The measured cost source: kernel times from aiconfigurator-core's tables (optional extra ``measured``).

A replica's step model is the roofline's, refitted to some fifty step times asked from the tables for
that model, GPU and shape (2 µs each; the first question for a GPU loads its tables, one to two seconds).
Simulation and closed forms so work unchanged. What tables do not say stays the roofline's: memory,
scheduling limits, and the time outside the steps.

Models are looked up offline, by shape: a fine-tune or distillation has the times of the bundled model
whose layers it shares.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from cascadia_api.errors import InputError
from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.models import ModelFacts, model_facts
from cascadia_solver.factors import DEFAULT_ENGINE
from cascadia_solver.replica_memory import MemoryUse, Shape, memory_use
from cascadia_solver.roofline import Roofline
from cascadia_solver.step_fit import StepSample, fit_step_model
from cascadia_solver.steptime import StepModel

__all__ = ["MeasuredTables", "StepTables"]

_SYSTEMS = {
    "A100-SXM-80GB": "a100_sxm",
    "H100-SXM-80GB": "h100_sxm",
    "H200-SXM-141GB": "h200_sxm",
    "B200-SXM-180GB": "b200_sxm",
    "L40S-48GB": "l40s",
}

# Configurations in the wheel, by the catalogue's name of the same shape.
_BUNDLED = {
    "meta-llama/Llama-3.1-8B": "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-405B": "meta-llama/Meta-Llama-3.1-405B",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
    "Qwen/Qwen3-0.6B": "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-1.7B": "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-8B": "Qwen/Qwen3-8B",
    "Qwen/Qwen3-32B": "Qwen/Qwen3-32B",
    "Qwen/Qwen3-30B-A3B": "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-235B-A22B": "Qwen/Qwen3-235B-A22B",
    "Qwen/Qwen3.5-397B-A17B": "Qwen/Qwen3.5-397B-A17B",
    "deepseek-ai/DeepSeek-V3": "deepseek-ai/DeepSeek-V3",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mistralai/Mixtral-8x7B-v0.1",
    "mistralai/Mixtral-8x22B-Instruct-v0.1": "mistralai/Mixtral-8x22B-v0.1",
    "openai/gpt-oss-20b": "openai/gpt-oss-20b",
    "openai/gpt-oss-120b": "openai/gpt-oss-120b",
    "moonshotai/Kimi-K2.5": "moonshotai/Kimi-K2.5",
    "MiniMaxAI/MiniMax-M2.5": "MiniMaxAI/MiniMax-M2.5",
    "zai-org/GLM-5": "zai-org/GLM-5",
}
_QUANTISATION = {"bf16": "bfloat16", "fp16": "bfloat16", "fp8": "fp8", "int8": "sq", "int4": "int4_wo", "fp4": "nvfp4"}

# Against 2,400 of the measurements that `factors` is fitted to: median end-to-end error, percent.
_UNCERTAINTY = {"H100-SXM-80GB": 9.0, "H200-SXM-141GB": 27.0, "B200-SXM-180GB": 21.0}
_ELSEWHERE = 30.0
_PIPELINE_SPREAD = 1.5
_VERSIONS = {"sglang": "0.5.14", "vllm": "0.24.0", "trtllm": "1.3.0rc20"}
"""Of the engines that aiconfigurator-core 0.12.0's tables were measured on."""

_PROMPTS = ((1, 128), (1, 512), (1, 2048), (1, 8192), (4, 1024), (8, 1024))
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_CONTEXTS = (256, 1024, 4096, 8192)


class StepTables(Protocol):
    """What is asked of aiconfigurator-core's ``EngineHandle``; milliseconds."""

    def predict_prefill_latency(self, bs: int, isl: int) -> float:
        """One step with the prompts of `bs` requests of `isl` tokens."""

    def decode_step_latency(self, gen_tokens: int, isl: int, osl: int) -> float:
        """One step of decoding for so many requests, each with a prompt of `isl` tokens."""


@dataclass(frozen=True, slots=True)
class MeasuredTables:
    """The `CostSource` on aiconfigurator-core's tables.

    Attributes:
        engine: sglang, vllm or trtllm.
        version: Of the engine that is asked about; the tables are of one version each.
        open_tables: Opens the tables of (model, system, engine, shape, precision, is a mixture).
    """

    engine: str = DEFAULT_ENGINE
    version: str = ""
    open_tables: Callable[[str, str, str, Shape, str, bool], StepTables] | None = None
    _fitted: dict[tuple[object, ...], StepModel] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """``measured``."""
        return "measured"

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
        """The roofline's step model, refitted to the tables.

        Raises:
            InputError: If the extra is not installed, or it has no tables for the model, the GPU or
                the precision; names those it has.
            InfeasibleError: If the model does not fit.
        """
        key = (model, gpu.name, shape, precision, gpus_per_node, chunk_tokens)
        if key not in self._fitted:
            start = Roofline(engine=self.engine).step_model(
                model, gpu, shape, precision, gpus_per_node=gpus_per_node, chunk_tokens=chunk_tokens
            )
            self._fitted[key] = fit_step_model(start, self._samples(model, gpu, shape, precision))[0]
        return self._fitted[key]

    def memory_use(
        self, model: ModelFacts, gpu: GpuFacts, shape: Shape, precision: str, *, chunk_tokens: int | None = None
    ) -> MemoryUse:
        """The roofline's."""
        return memory_use(model, gpu, shape, precision, chunk_tokens=chunk_tokens)

    def uncertainty_percent(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> float:  # noqa: ARG002  # the protocol's
        """The tables' median error against measured engines; more for pipelines."""
        percent = _UNCERTAINTY.get(gpu.name, _ELSEWHERE)
        return percent * _PIPELINE_SPREAD if shape.pipeline_parallel > 1 else percent

    def extrapolations(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> tuple[str, ...]:
        """What is assumed of the model; unchecked GPUs, pipelines, which no engine had, another engine version."""
        found = list(model.assumed)
        found += [] if gpu.name in _UNCERTAINTY else [f"tables of {gpu.name} not checked against engines"]
        if shape.pipeline_parallel > 1:
            found.append("no measured engine with pipeline parallelism")
        if self.version not in {"", _VERSIONS[self.engine]}:
            found.append(f"tables of {self.engine} {_VERSIONS[self.engine]}, not {self.version}")
        return tuple(found)

    def _samples(self, model: ModelFacts, gpu: GpuFacts, shape: Shape, precision: str) -> list[StepSample]:
        if gpu.name not in _SYSTEMS:
            raise InputError(f"no measured tables for {gpu.name}; there are some for {', '.join(_SYSTEMS)}")
        opener = self.open_tables or _open_tables
        tables = opener(_bundled(model), _SYSTEMS[gpu.name], self.engine, shape, precision, model.moe_layers > 0)
        samples = []
        for requests, prompt in _PROMPTS:
            pairs = 0.5 * requests * prompt * (prompt + 1.0)
            seconds = tables.predict_prefill_latency(requests, prompt) / 1e3
            samples.append(StepSample(float(requests * prompt), pairs, 0.0, 0.0, seconds))
        for requests in _BATCHES:
            for context in _CONTEXTS:
                seconds = tables.decode_step_latency(requests, context, 2) / 1e3
                samples.append(StepSample(0.0, 0.0, float(requests), float(requests * (context + 1)), seconds))
        return samples


def _bundled(model: ModelFacts) -> str:
    """The wheel's name of the model with the same layers."""
    wanted = _layers_of(model)
    for name, bundled in _BUNDLED.items():
        if _layers_of(model_facts(name)) == wanted:
            return bundled
    raise InputError(
        f"no measured tables for the layers of {model.name}; there are some for {', '.join(_BUNDLED)} "
        f"and models of the same shape; use the built-in roofline for others"
    )


def _layers_of(model: ModelFacts) -> ModelFacts:
    """The facts that step times depend on: no name, no vocabulary, no window of the whole context."""
    return replace(
        model, name="", vocab=0, context_window=0, capabilities=(), extra_params=0, tied_embeddings=False,
        attention_in_16_bits=False, native_precision="", fp4_anywhere=False, assumed=(),
    )  # fmt: skip


@cache
def _open_tables(name: str, system: str, engine: str, shape: Shape, precision: str, mixture: bool) -> StepTables:
    try:
        from aiconfigurator_core.sdk.common import DefaultHFModels
        from aiconfigurator_core.sdk.engine import EngineHandle
    except ImportError:
        raise InputError(
            "measured tables need the optional extra: pip install 'cascadia[measured]' (aiconfigurator-core 0.12); "
            "or use the built-in roofline"
        ) from None
    logging.getLogger("aiconfigurator_core").setLevel(logging.ERROR)  # it talks of other models' tables
    degrees: dict[str, Any] = {"tp_size": shape.tensor_parallel, "pp_size": shape.pipeline_parallel}
    if mixture:
        degrees |= {"moe_tp_size": shape.tensor_parallel, "moe_ep_size": 1}
    refusal: Exception | None = None
    for products, experts in _modes(precision, name):
        modes = {"gemm_quant_mode": products, "kvcache_quant_mode": "bfloat16", "fmha_quant_mode": "bfloat16"}
        if mixture:
            modes["moe_quant_mode"] = experts
        try:
            with _offline(name, listed=name in DefaultHFModels) as model:
                handle: StepTables = EngineHandle.compile(model, system, engine, **degrees, **modes)
            handle.predict_prefill_latency(1, 128)
            handle.decode_step_latency(1, 128, 2)
        except (ValueError, LookupError, RuntimeError, NotImplementedError, AttributeError) as error:
            refusal = error
        else:
            return handle
    raise InputError(
        f"no measured tables for {name} in {precision} on {shape} of {system} under {engine} ({refusal}); "
        "use the built-in roofline"
    ) from refusal


@contextmanager
def _offline(name: str, *, listed: bool) -> Iterator[str]:
    """What the wheel finds a model by without the network: its name, or a folder with the configuration in the wheel.

    It holds configurations (Mixtral's) that it does not list, and asks Hugging Face for.
    """
    if listed:
        yield name
        return
    bundled = files("aiconfigurator_core") / "model_configs" / f"{name.replace('/', '--')}_config.json"
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_bytes(bundled.read_bytes())
        yield folder


def _modes(precision: str, name: str) -> Sequence[tuple[str, str]]:
    """Quantisations of (matrix products, experts) under which tables may list a precision, likeliest first."""
    if name.startswith("openai/"):
        return (("bfloat16", "w4a16_mxfp4"),)  # the checkpoint's own, whatever was asked for
    if precision == "fp8":
        return (("fp8", "fp8"), ("fp8_block", "fp8_block"))
    if name.startswith("moonshotai/"):
        return (("bfloat16", _QUANTISATION[precision]),)
    return ((_QUANTISATION[precision], _QUANTISATION[precision]),)
