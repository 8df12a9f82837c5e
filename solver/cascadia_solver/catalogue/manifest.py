"""From the models and pools of a manifest to facts: the catalogue's, or those that the manifest gives itself."""

from __future__ import annotations

import json
from functools import lru_cache

from cascadia_api.cascade import Model, Pool
from cascadia_api.errors import InputError, Problem
from cascadia_solver.catalogue.gpus import GPUS, GpuFacts, custom_gpu, gpu_facts
from cascadia_solver.catalogue.models import ModelFacts, facts_from_config, model_facts

__all__ = ["gpu_of", "model_of", "precision_of", "repository", "served_name"]


def served_name(model: Model) -> str:
    """What the weights are called: their repository, or the last folder of their path."""
    if model.source.hugging_face is not None:
        return model.source.hugging_face.repo
    assert model.source.pvc is not None
    return model.source.pvc.path.rstrip("/").rsplit("/", 1)[-1] or model.name


def repository(model: Model) -> str:
    """Repository or catalogue name that a model's architecture is known by.

    Raises:
        InputError: A volume with neither `architecture` nor a `configJson`.
    """
    pvc = model.source.pvc
    if pvc is not None and pvc.architecture is not None:
        return pvc.architecture
    if pvc is not None and model.config_json is None:
        raise InputError(
            Problem(
                "source.pvc.architecture",
                "planning needs the architecture of these weights: name a repository of it, or give their "
                "config.json as configJson",
            )
        )
    return served_name(model)


def model_of(model: Model) -> ModelFacts:
    """Facts of a model: from its own `configJson` if it has one, else from the catalogue.

    Raises:
        InputError: Names the field below the model, and what is wrong with it.
    """
    name = repository(model)
    if model.config_json is not None:
        return _given(model.config_json, name)
    field = "source.huggingFace.repo" if model.source.hugging_face is not None else "source.pvc.architecture"
    try:
        return model_facts(name)
    except InputError as error:
        raise InputError(Problem(field, str(error))) from None


@lru_cache(maxsize=64)
def _given(text: str, name: str) -> ModelFacts:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            Problem("configJson", f"is not JSON: line {error.lineno}, column {error.colno}: {error.msg}")
        ) from None
    if not isinstance(config, dict):
        raise InputError(Problem("configJson", f"must be a JSON object, not {type(config).__name__}"))
    try:
        return facts_from_config(config, name)
    except InputError as error:
        raise InputError(error.below("configJson").problems) from None


def gpu_of(pool: Pool) -> GpuFacts:
    """Facts of a pool's GPU: from its own `gpuSpec` if it has one, else from the catalogue.

    Raises:
        InputError: Names the field below the pool, and what is wrong with it.
    """
    spec = pool.gpu_spec
    if spec is None:
        try:
            return gpu_facts(pool.gpu)
        except InputError as error:
            raise InputError(Problem("gpu", f"{error}; for any other give its five numbers as gpuSpec")) from None
    if pool.gpu.casefold() in {known.casefold() for known in GPUS}:
        raise InputError(
            Problem("gpuSpec", f"{pool.gpu} is in the catalogue: leave gpuSpec out, or call the GPU something else")
        )
    return custom_gpu(
        pool.gpu,
        memory_gigabytes=float(spec.memory_gigabytes),
        memory_gigabytes_per_second=float(spec.memory_gigabytes_per_second),
        bf16_teraflops=float(spec.bf16_teraflops),
        fp8_teraflops=float(spec.fp8_teraflops),
        link_gigabytes_per_second=float(spec.link_gigabytes_per_second),
        fp4_teraflops=float(spec.fp4_teraflops or 0),
    )


def precision_of(model: Model, facts: ModelFacts) -> str:
    """Precision of the weights as served: the manifest's, else that of the published checkpoint."""
    return model.precision or facts.native_precision
