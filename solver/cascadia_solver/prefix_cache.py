"""Cost of prompts that an engine's prefix cache knows in part, whatever the step times come from."""

from __future__ import annotations

from dataclasses import dataclass

from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.roofline import CostSource, Shape
from cascadia_solver.steptime import StepModel

__all__ = ["PrefixCacheSource", "with_prefix_cache"]


def with_prefix_cache(source: CostSource, hit_percent: float) -> CostSource:
    """A source for engines whose prefix cache has a share of every prompt; the source itself at 0.

    Args:
        source: Where step times come from.
        hit_percent: Share of prompt tokens found in the cache, 0 to 100 %.
    """
    return PrefixCacheSource(source, hit_percent) if hit_percent > 0 else source


@dataclass(frozen=True, slots=True)
class PrefixCacheSource:
    """The `CostSource` of another one's step times, with hits.

    Attributes:
        base: Source of the step times.
        hit_percent: Share of each prompt's tokens found in the cache, above 0, up to 100 %.
    """

    base: CostSource
    hit_percent: float

    @property
    def name(self) -> str:
        """The base's: step times are its own."""
        return self.base.name

    def step_model(
        self, model: ModelFacts, gpu: GpuFacts, shape: Shape, precision: str, *, gpus_per_node: int = 8
    ) -> StepModel:
        """The base's step model; what it does not process is up to scheduler and closed forms."""
        step = self.base.step_model(model, gpu, shape, precision, gpus_per_node=gpus_per_node)
        return step._replace(prefix_hit=self.hit_percent / 100.0)

    def uncertainty_percent(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> float:
        """The base's."""
        return self.base.uncertainty_percent(model, gpu, shape)

    def extrapolations(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> tuple[str, ...]:
        """The base's, and the hits: no measured engine had any."""
        hits = f"{self.hit_percent:g} % of prompt tokens from the prefix cache, the same share of every prompt"
        return (*self.base.extrapolations(model, gpu, shape), hits)
