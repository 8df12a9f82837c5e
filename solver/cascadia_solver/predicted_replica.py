"""What a cost source says of one replica of a manifest, and what a correction of it would be kept under."""

from __future__ import annotations

from typing import NamedTuple

from cascadia_api.cascade import CascadeDeploymentSpec
from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.manifest import gpu_of, model_of, precision_of
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.engine_settings import settings_of, with_settings
from cascadia_solver.live_correction import CorrectionKey
from cascadia_solver.replica_memory import Shape
from cascadia_solver.roofline import CostSource
from cascadia_solver.steptime import StepModel

__all__ = ["PredictedReplica", "predicted_replica"]


class PredictedReplica(NamedTuple):
    """A replica as a cost source sees it.

    Attributes:
        model: What it serves.
        gpu: What it runs on.
        shape: Degrees of parallelism.
        step: Its step times.
    """

    model: ModelFacts
    gpu: GpuFacts
    shape: Shape
    step: StepModel

    def key(self, engine_version: str) -> CorrectionKey:
        """What corrections of it are kept under."""
        return CorrectionKey(self.model.name, self.gpu.name, str(self.shape), engine_version)


def predicted_replica(
    spec: CascadeDeploymentSpec, source: CostSource, stage: str, pool: str, shape: Shape
) -> PredictedReplica:
    """Predict one replica, its engine's settings included.

    Args:
        spec: The manifest's.
        source: Where step times come from.
        stage: One of its models.
        pool: One of its GPU pools.
        shape: Degrees of parallelism.

    Raises:
        InputError: The manifest says something wrong of the model or the GPU.
        InfeasibleError: The replica does not fit into memory.
    """
    model = next(model for model in spec.models if model.name == stage)
    gpus = next(candidate for candidate in spec.gpus.pools if candidate.name == pool)
    facts, gpu = model_of(model), gpu_of(gpus)
    configured = with_settings(source, settings_of(spec, model))
    step = configured.step_model(facts, gpu, shape, precision_of(model, facts), gpus_per_node=gpus.gpus_per_node or 8)
    return PredictedReplica(facts, gpu, shape, step)
