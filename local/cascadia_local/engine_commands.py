"""From a replica of a plan to the engine process that plays it: configuration, file, command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cascadia_api.clock import ScaledClock
from cascadia_local.llamacpp_engine import LlamaCppConfig
from cascadia_local.processes import Command
from cascadia_local.simulated_engine.config import SimulatedEngineConfig
from cascadia_local.simulated_engine.difficulty import DEFAULT_CORRELATION, ModelAbility
from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.engine_settings import EngineSettings, with_settings
from cascadia_solver.roofline import CostSource, Roofline, Shape

__all__ = [
    "EngineReplica",
    "SimulationSettings",
    "engine_command",
    "llamacpp_config",
    "load_seconds",
    "simulated_config",
]

START_SECONDS = 20.0
LOAD_BYTES_PER_SECOND = 10e9
"""Assumed: process start and CUDA graphs, and weights read from local NVMe or a page cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReplica:
    """One replica of a plan's stage.

    Attributes:
        stage: Stage name.
        served_model_name: The `model` that its engine answers to.
        listen: ``host:port`` of its engine.
        model: Facts of the stage's model.
        precision: Of its weights.
        gpu: GPU of its pool.
        tensor_parallel: TP degree.
        pipeline_parallel: PP degree.
        gpus_per_node: GPUs of one server of its pool.
        settings: Of its engine, where they change step times.
    """

    stage: str
    served_model_name: str
    listen: str
    model: ModelFacts
    precision: str
    gpu: GpuFacts
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    gpus_per_node: int = 8
    settings: EngineSettings = field(default_factory=EngineSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSettings:
    """What all simulated engines of one cascade share.

    Attributes:
        abilities: Ability of each stage's model, by stage name (`difficulty.default_abilities`).
        clock: The run's clock.
        seed: Seed of the difficulty model.
        error_correlation: rho of the difficulty model.
        outcomes_file: Calibration set to answer from, or None.
        scorer_id: Which of its scores the answers have.
        load_speedup: How much faster than assumed models load; demonstrations have no minutes to wait.
        stream_interval_milliseconds: Shortest time between two chunks of one stream, wall ms.
        cost: Source of the step times; the planner's.
    """

    abilities: Mapping[str, ModelAbility]
    clock: ScaledClock
    seed: int = 0
    error_correlation: float = DEFAULT_CORRELATION
    outcomes_file: Path | None = None
    scorer_id: str = "logprob-mean"
    load_speedup: float = 1.0
    stream_interval_milliseconds: float = 20.0
    cost: CostSource = field(default_factory=Roofline)


def load_seconds(model: ModelFacts, precision: str) -> float:
    """Time from starting an engine to its being ready, s: a fixed start and reading the weights once."""
    return START_SECONDS + model.weights_bytes(precision) / LOAD_BYTES_PER_SECOND


def simulated_config(replica: EngineReplica, settings: SimulationSettings) -> SimulatedEngineConfig:
    """Return the configuration of the simulated engine that plays a replica.

    Raises:
        InputError: The GPU, precision or degrees are unknown or senseless.
        InfeasibleError: The model does not fit on the replica's GPUs.
    """
    gpu = replica.gpu
    shape = Shape(replica.tensor_parallel, replica.pipeline_parallel)
    source = with_settings(settings.cost, replica.settings)
    step = source.step_model(replica.model, gpu, shape, replica.precision, gpus_per_node=replica.gpus_per_node)
    uncertainty = source.uncertainty_percent(replica.model, gpu, shape)
    gpus = replica.tensor_parallel * replica.pipeline_parallel
    return SimulatedEngineConfig(
        listen=replica.listen,
        served_model_name=replica.served_model_name,
        stage=replica.stage,
        model=settings.abilities[replica.stage],
        step=list(step),
        step_source=f"{source.name}, median error {uncertainty:.0f} %",
        model_load_seconds=load_seconds(replica.model, replica.precision) / settings.load_speedup,
        seed=settings.seed,
        error_correlation=settings.error_correlation,
        context_window=replica.model.context_window,
        outcomes_file=str(settings.outcomes_file) if settings.outcomes_file is not None else None,
        scorer_id=settings.scorer_id,
        stream_interval_milliseconds=settings.stream_interval_milliseconds,
        clock_scale=settings.clock.scale,
        clock_epoch=settings.clock.epoch,
        tensor_parallel=replica.tensor_parallel,
        pipeline_parallel=replica.pipeline_parallel,
        hardware=f"{gpus} x {gpu.name}, {replica.model.name} in {replica.precision}",
    )


def llamacpp_config(replica: EngineReplica, model_file: Path | None = None) -> LlamaCppConfig:
    """Return the configuration of the llama.cpp engine that stands in for a replica.

    Args:
        replica: The replica; only its stage, name and address matter.
        model_file: GGUF file; None for SmolLM2-135M-Instruct.
    """
    return LlamaCppConfig(
        listen=replica.listen,
        served_model_name=replica.served_model_name,
        stage=replica.stage,
        model_file=str(model_file) if model_file is not None else None,
    )


def engine_command(config: SimulatedEngineConfig | LlamaCppConfig, path: Path, *, nice: int = 0) -> Command:
    """Write an engine's configuration to a file and return the command that runs it.

    Args:
        config: The configuration.
        path: File to write.
        nice: Niceness of the process.
    """
    path.write_bytes(msgspec.json.encode(config))
    module = "simulated_engine" if isinstance(config, SimulatedEngineConfig) else "llamacpp_engine"
    return Command(f"cascadia_local.{module}", ("--config", str(path)), nice=nice)
