"""Which engine plays a replica: the simulated one, or llama.cpp with a small model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.errors import InputError
from cascadia_api.plan import Plan
from cascadia_local.engine_commands import (
    EngineReplica,
    SimulationSettings,
    engine_command,
    llamacpp_config,
    simulated_config,
)
from cascadia_local.llamacpp_engine import check_installed
from cascadia_local.processes import Command
from cascadia_solver.catalogue.manifest import gpu_of, model_of, precision_of, served_name
from cascadia_solver.engine_settings import settings_of
from cascadia_solver.transition import DesiredReplica

__all__ = ["EngineKind", "EngineStarter", "engine_starter", "one_replica_a_stage"]

EngineKind: TypeAlias = Literal["simulated", "llamacpp"]
EngineStarter: TypeAlias = Callable[[DesiredReplica, str, Path], Command]
"""From a replica, the ``host:port`` to listen on and the file for its configuration to its command."""


def engine_starter(
    cascade: CascadeDeployment, settings: SimulationSettings, *, kind: EngineKind, model_file: Path | None = None
) -> EngineStarter:
    """Return what makes the engine commands of a cascade.

    Args:
        cascade: The manifest.
        settings: What its simulated engines share.
        kind: Which engine.
        model_file: llama.cpp only: GGUF file; SmolLM2-135M where None.

    Raises:
        InputError: A model or GPU is unknown, or llama.cpp is not installed.
    """
    models = {model.name: model for model in cascade.spec.models}
    pools = {pool.name: pool for pool in cascade.spec.gpus.pools}
    facts = {name: model_of(model) for name, model in models.items()}

    def command(desired: DesiredReplica, listen: str, path: Path) -> Command:
        pool = pools[desired.pool]
        replica = EngineReplica(
            stage=desired.stage,
            served_model_name=served_name(models[desired.stage]),
            listen=listen,
            model=facts[desired.stage],
            precision=precision_of(models[desired.stage], facts[desired.stage]),
            gpu=gpu_of(pool),
            tensor_parallel=desired.tensor_parallel,
            pipeline_parallel=desired.pipeline_parallel,
            gpus_per_node=pool.gpus_per_node or 8,
            settings=settings_of(cascade.spec, models[desired.stage]),
        )
        if kind == "simulated":
            return engine_command(simulated_config(replica, settings), path)
        # More threads than cores, all engines together, slow llama.cpp down many times: its threads spin.
        threads = max(1, (os.cpu_count() or 1) // len(models))
        return engine_command(msgspec.structs.replace(llamacpp_config(replica, model_file), threads=threads), path)

    if kind == "llamacpp":
        _check_llamacpp(model_file)
    return command


def _check_llamacpp(model_file: Path | None) -> None:
    """Find out what is missing before any process is started."""
    from cascadia_local.llamacpp_engine import LlamaCppConfig

    try:
        check_installed(
            LlamaCppConfig(
                listen="127.0.0.1:0",
                served_model_name="check",
                stage="check",
                model_file=str(model_file) if model_file is not None else None,
            )
        )
    except InputError as error:
        raise error.within("--engine llamacpp") from None


def one_replica_a_stage(plan: Plan) -> Plan:
    """Cut a plan to one replica a stage: for engines that really compute, on a machine without GPUs."""
    stages = []
    for stage in plan.stages:
        groups = [stage.replicas[0].model_copy(update={"count": 1, "weight": 1.0})] if stage.gpus else []
        gpus = sum(group.tensor_parallel * group.pipeline_parallel for group in groups)
        stages.append(stage.model_copy(update={"replicas": groups, "gpus": gpus}))
    return plan.model_copy(update={"stages": stages})


def stage_words(cascade: CascadeDeployment) -> Mapping[str, str]:
    """What each stage runs, in words, by stage name."""
    return {
        model.name: f"{served_name(model).rsplit('/', 1)[-1].removesuffix('-Instruct')} "
        + precision_of(model, model_of(model))
        for model in cascade.spec.models
    }
