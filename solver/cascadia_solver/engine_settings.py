"""Cost of a stage whose engine is set up in its own way, whatever the step times come from.

Two things of the manifest change what an engine does with a prompt: the share of it that its prefix cache
has, and the size of the chunks in which the rest is processed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cascadia_api.cascade import CascadeDeploymentSpec, Model
from cascadia_api.engine_args import chunked_prefill_size
from cascadia_api.errors import InputError, Problem
from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.replica_memory import MemoryUse, Shape
from cascadia_solver.roofline import CostSource
from cascadia_solver.steptime import StepModel

__all__ = [
    "WHOLE_PROMPTS_TOKENS",
    "ConfiguredSource",
    "EngineSettings",
    "settings_of",
    "stage_sources",
    "with_settings",
]

WHOLE_PROMPTS_TOKENS = 16_384
"""Most prompt tokens in a step of an engine that does not cut prompts: SGLang's default ``--max-prefill-tokens``."""


class EngineSettings(NamedTuple):
    """How an engine is set up, where that changes its step times.

    Attributes:
        prefix_hit_percent: Share of each prompt's tokens found in the prefix cache, 0 to 100 %.
        chunk_tokens: Most prompt tokens in one step, above 0; None for SGLang's default on the GPU.
    """

    prefix_hit_percent: float = 0.0
    chunk_tokens: int | None = None


def settings_of(spec: CascadeDeploymentSpec, model: Model) -> EngineSettings:
    """What a manifest says of a model's engine.

    Args:
        spec: The manifest's.
        model: One of its models.

    Raises:
        InputError: An engine argument is wrong; names the field below the model.
    """
    try:
        size = chunked_prefill_size(model.engine.extra_args or () if model.engine is not None else ())
    except InputError as error:
        raise error.below("engine.extraArgs") from None
    own, shared = model.prefix_cache_hit_percent, spec.workload.prefix_cache_hit_percent
    hits = own if own is not None else shared or 0
    return EngineSettings(hits, WHOLE_PROMPTS_TOKENS if size is not None and size <= 0 else size)


def stage_sources(spec: CascadeDeploymentSpec, base: CostSource) -> tuple[CostSource, ...]:
    """Where the step times of each model of a manifest come from, its engine's settings included.

    Args:
        spec: The manifest's.
        base: Where step times come from.

    Raises:
        InputError: Engine arguments are wrong; names their fields.
    """
    problems: list[Problem] = []
    sources: list[CostSource] = []
    for index, model in enumerate(spec.models):
        try:
            sources.append(with_settings(base, settings_of(spec, model)))
        except InputError as error:
            problems += error.below(f"spec.models[{index}]").problems
    if problems:
        raise InputError(problems)
    return tuple(sources)


def with_settings(base: CostSource, settings: EngineSettings) -> CostSource:
    """A source for engines with these settings; the source itself where they are the defaults."""
    return base if settings == EngineSettings() else ConfiguredSource(base, settings)


@dataclass(frozen=True, slots=True)
class ConfiguredSource:
    """The `CostSource` of another one's step times, for engines with other settings.

    Attributes:
        base: Source of the step times.
        settings: The engines'.
    """

    base: CostSource
    settings: EngineSettings

    @property
    def name(self) -> str:
        """The base's: step times are its own."""
        return self.base.name

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
        """The base's step model; what of a prompt goes into which step is up to scheduler and closed forms."""
        chunk = chunk_tokens if chunk_tokens is not None else self.settings.chunk_tokens
        step = self.base.step_model(model, gpu, shape, precision, gpus_per_node=gpus_per_node, chunk_tokens=chunk)
        return step._replace(prefix_hit=self.settings.prefix_hit_percent / 100.0)

    def memory_use(
        self, model: ModelFacts, gpu: GpuFacts, shape: Shape, precision: str, *, chunk_tokens: int | None = None
    ) -> MemoryUse:
        """The base's, with the memory that chunks of this size take."""
        chunk = chunk_tokens if chunk_tokens is not None else self.settings.chunk_tokens
        return self.base.memory_use(model, gpu, shape, precision, chunk_tokens=chunk)

    def uncertainty_percent(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> float:
        """The base's."""
        return self.base.uncertainty_percent(model, gpu, shape)

    def extrapolations(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> tuple[str, ...]:
        """The base's, and the settings: no measured engine had hits, and their chunks were the engines' own."""
        found = list(self.base.extrapolations(model, gpu, shape))
        hits, chunk = self.settings
        if hits:
            found.append(f"{hits:g} % of prompt tokens from the prefix cache, the same share of every prompt")
        if chunk is not None:
            found.append(f"prompts in chunks of {chunk} tokens")
        return tuple(found)
